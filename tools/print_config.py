"""Print a config as one file without bases."""

from mmlit_tools.print_config import main

if __name__ == '__main__':
    main()
