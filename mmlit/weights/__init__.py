"""Rename, convert and load state dicts of mmlit and of the authors.

Here: pure functions of state dicts. Not here: files (`checkpoints`).
"""
