"""Draw the small dataset of the demos."""

from mmlit_tools.shapes.command import main

if __name__ == '__main__':
    main()
