"""Functions of tensors: exact, fast, and tested against plain definitions.

Here: attention kernels, relative position bias, token merging, resizing; and the only
place that asks for the device, the compiler or the exporter. Not here: modules with
parameters (`models`).
"""
