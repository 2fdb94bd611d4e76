"""Convert checkpoints between the authors' layouts and mmlit's."""

from mmlit_tools.convert.command import main

if __name__ == '__main__':
    main()
