"""Provide the parts of the commands in `tools/`, importable.

Here: options, configs, models, data checks, pictures, reports. mmdet, mmseg and other
heavy packages are imported where they are used, so that `--help` is quick. Not here:
anything that a config needs to train (`mmlit`).
"""
