"""Train a detector or segmentor."""

from mmlit_tools.train import main

if __name__ == '__main__':
    main()
