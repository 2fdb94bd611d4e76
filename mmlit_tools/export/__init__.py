"""Export models to ONNX and compare the files with PyTorch."""
