"""Draw training samples as the pipeline gives them to the network."""

from mmlit_tools.data.draw import main

if __name__ == '__main__':
    main()
