"""Configs that a checkpoint carries as text, which mmengine runs as programs.

`Runner.resume` runs ``meta['config']``, and mmengine's inferencers run ``meta['cfg']``
where they are given no other config. What mmengine itself saves is settings alone; any
other text is kept from it.
"""

import ast
from typing import Any

from mmengine.logging import print_log

KEYS = ('config', 'cfg')
#: Characters. The configs of mmdet and mmseg have some ten thousand.
LONGEST = 1_000_000
#: What a dump of settings consists of.
_PLAIN = (
    ast.Module,
    ast.Assign,
    ast.Expr,
    ast.Constant,
    ast.Dict,
    ast.List,
    ast.Tuple,
    ast.Set,
    ast.Call,
    ast.keyword,
    ast.Name,
    ast.UnaryOp,
    ast.USub,
    ast.Load,
    ast.Store,
)


def without_programs(checkpoint: Any, name: str) -> Any:
    """Take configs out of a checkpoint's meta data that are more than settings.

    Args:
        checkpoint: What the file holds.
        name: The file, for the warning.

    Returns:
        The checkpoint, changed in place.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if not isinstance(meta, dict):
        return checkpoint
    for key in KEYS:
        if key in meta and not is_settings(meta[key]):
            del meta[key]
            print_log(
                f"{name}: its meta['{key}'] is no dump of settings but may be a "
                'program, which mmengine would run; it is left out',
                logger='current',
                level=30,
            )
    return checkpoint


def is_settings(text: Any) -> bool:
    """Whether running `text` as a config does no more than name plain values.

    Settings may name modules to import (``custom_imports``), as ours do; what these do
    is not looked at.
    """
    if not isinstance(text, str) or len(text) > LONGEST:
        return False
    if '{{' in text:  # mmengine replaces `{{$NAME:other}}` before it runs the text.
        return False
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _PLAIN) and _is_harmless(node) for node in nodes)


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        # `dict(a=1)`, the way settings are written.
        return isinstance(node.func, ast.Name) and node.func.id == 'dict'
    if isinstance(node, ast.Name):
        # A base is a program of its own.
        stores = isinstance(node.ctx, ast.Store)
        return node.id not in ('_base_', 'dict') if stores else node.id == 'dict'
    return True
