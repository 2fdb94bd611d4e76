"""Compute on tensors, exactly and fast; plain definitions test it.

Here: attention kernels, relative position bias, token merging, resizing; and the only
place that asks for the device, the compiler or the exporter. Not here: modules with
parameters (`models`).
"""
