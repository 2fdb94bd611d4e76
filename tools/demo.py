"""Train, evaluate and draw a small detector or segmentor on drawn shapes."""

from mmlit_tools.demo.command import main

if __name__ == '__main__':
    main()
