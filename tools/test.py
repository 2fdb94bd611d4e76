"""Evaluate a checkpoint of a detector or segmentor."""

from mmlit_tools.test import main

if __name__ == '__main__':
    main()
