"""Draw what LIT does with images: offsets, attention, features."""

from mmlit_tools.visualize.command import main

if __name__ == '__main__':
    main()
