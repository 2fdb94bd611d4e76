"""Plug-ins for mmengine: hooks, resuming, optimizer constructors, strategies.

Here: what a config names by `type`, beside the backbone. Not here: anything that a
network needs to compute (`models`, `ops`).
"""
