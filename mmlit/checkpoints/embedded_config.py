"""Remove configs from checkpoints that mmengine would run as programs.

`Runner.resume` runs ``meta['config']``. mmengine's inferencers, where they are given no
other config, run ``message_hub['runtime_info']['cfg']`` or ``meta['cfg']``. What
mmengine itself saves is settings alone; any other text is kept from it.
"""

import ast
import logging
from typing import Any

from mmengine.logging import print_log

#: Characters. The configs of mmdet and mmseg have some ten thousand.
_LONGEST = 1_000_000
#: What a dump of settings consists of.
_PLAIN = tuple(
    getattr(ast, name)
    for name in 'Module Assign Expr Constant Dict List Tuple Set Call keyword Name '
    'UnaryOp USub Load Store'.split()
)


def remove_config_code(checkpoint: Any, name: str) -> Any:
    """Take configs out of a checkpoint that are more than settings.

    Args:
        checkpoint: What the file holds.
        name: The file, for the warning.

    Returns:
        The checkpoint, changed in place.
    """
    for path in (('meta',), ('message_hub', 'runtime_info')):
        place = checkpoint
        for key in path:
            place = place.get(key) if isinstance(place, dict) else None
        for key in ('config', 'cfg'):
            if not isinstance(place, dict) or key not in place:
                continue
            if not is_settings(place[key]):
                del place[key]
                text = f'{name}: {key} in {".".join(path)} is left out, it may be code'
                print_log(text, logger='current', level=logging.WARNING)
    return checkpoint


def is_settings(text: Any) -> bool:
    """Return whether running `text` as a config only assigns plain values.

    Settings may name modules to import (``custom_imports``), as ours do; what these do
    is not looked at.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
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
