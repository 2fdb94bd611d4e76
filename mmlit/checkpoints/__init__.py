"""Checkpoint files: read without trusting them, download, write atomically.

Here: what may be in a file, and how it gets onto the disk. Not here: the parameters of
any network (`weights`), training loops (`engine`).
"""
