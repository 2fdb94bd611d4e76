"""State dicts: key names of each family, conversion between layouts, strict loading.

Here: pure functions of state dicts. Not here: files (`checkpoints`).
"""
