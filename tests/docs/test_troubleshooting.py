"""Find the messages that docs/troubleshooting.md explains in the code."""

import ast
import re
import sys
from pathlib import Path

import pytest

import mmlit
from support.this_stack import STACK

pytest.importorskip('mmdet', reason='some messages are its')
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ('mmlit', 'mmlit_doctor', 'mmlit_tools', 'tools')


def rows(columns: int) -> list:
    """Return the rows of troubleshooting.md's tables with this number of columns."""
    lines = (ROOT / 'docs/troubleshooting.md').read_text().splitlines()
    cells = [
        re.split(r'(?<!\\) \| ', line.strip('| ')) for line in lines if '|' in line
    ]
    return [row for row in cells if len(row) == columns and row[0].startswith('`')]


def messages(row: list) -> list:
    """Return the fixed parts of a row's message, in order."""
    quoted = re.match(r'``? ?(.+?) ?``?(?= |$)(?! \w+`)', row[0]).group(1)
    return [part for part in quoted.split('...') if part.strip()]


def texts_of(*files: Path) -> list:
    """Return all strings of Python files, with a gap where a value is put in."""
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, 'value', '\0') for part in node.values)
                found.append(''.join(p if isinstance(p, str) else '\0' for p in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def is_said(parts: list, texts: list) -> bool:
    """Return whether one of the texts has all parts, one after the other."""
    pattern = re.compile('.*'.join(map(re.escape, parts)), re.S)
    return any(pattern.search(text) for text in texts)


def test_mmlit_prints_the_messages_that_are_explained():
    files = [f for name in PACKAGES for f in (ROOT / name).rglob('*.py')]
    texts = [*texts_of(*files), (ROOT / 'Makefile').read_text()]
    explained = [messages(row) for row in rows(2)]
    assert [parts for parts in explained if not is_said(parts, texts)] == []


def test_others_print_the_messages_that_are_explained():
    explained = rows(3)
    for row in explained:
        if 'mmdet 3.3.0' in row[2] and STACK != 'openmmlab':
            continue
        if row[1] == 'Python':
            argument = re.search(r"argument '(\w+)'", ' '.join(row)).group(1)
            with pytest.raises(TypeError) as failure:
                mmlit.LIT(**{argument: 50})
            assert messages(row)[0] in str(failure.value)
        else:
            folder = Path(sys.modules[row[1]].__file__).parent
            assert any(
                is_said(messages(row), [file.read_text(errors='replace')])
                for file in folder.rglob('*.py')
            ), row[0]
