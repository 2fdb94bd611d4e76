"""Run a detector or segmentor on images, folders and videos."""

from mmlit_tools.infer.command import main

if __name__ == '__main__':
    main()
