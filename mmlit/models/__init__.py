"""Build networks; start reading with `lit.py`.

Here: the backbone and the modules that it is made of. Not here: key names of files
(`weights`), questions about devices, compilers and exporters (`ops`), mmengine's runner
(`engine`).
"""
