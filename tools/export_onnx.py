"""Export a detector or segmentor to ONNX."""

from mmlit_tools.export.command import main

if __name__ == '__main__':
    main()
