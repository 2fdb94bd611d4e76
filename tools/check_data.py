"""Check the training and validation data of a config."""

from mmlit_tools.data.command import main

if __name__ == '__main__':
    main()
