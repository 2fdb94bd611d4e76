"""Answer mmengine, which imports `<scope>.registry` for the scope `mmlit`.

The registries themselves are in engine/config_bases.py: `import mmlit` makes them.
"""
