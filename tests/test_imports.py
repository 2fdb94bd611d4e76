"""Check that imports point one way between the rooms, and in no circle."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: What each room may import of this repository, beside itself. `mmlit` stands for the
#: package's `__init__`, which hands names on.
GROUND = {'archs', 'arguments', 'errors', 'version'}
ROOMS = {
    'version': set(),
    'errors': set(),
    'arguments': set(),
    'archs': {'arguments'},
    'environment': {'errors', 'version', 'mmlit_doctor'},
    'ops': GROUND,
    'weights': GROUND | {'ops'},
    'models': GROUND | {'ops', 'weights'},
    'checkpoints': GROUND,
    'engine': GROUND | {'models', 'checkpoints', 'ops', 'weights'},
    'visualization': GROUND | {'models', 'ops'},
    'mmlit': GROUND
    | {'environment', 'models', 'checkpoints', 'engine', 'visualization'},
}
#: What no module of a package may import.
FORBIDDEN = {
    'mmlit': {'mmdet', 'mmseg', 'mmpretrain', 'mmlit_tools'},
    'mmlit_tools': {'tools', 'tests'},
}
#: Networks and operators know nothing of a training.
NO_RUNNER = ('models', 'ops', 'weights')


def modules(package):
    return sorted((ROOT / package).rglob('*.py'))


def imports(path, everywhere=True):
    """Yield the absolute dotted names that a file imports, inside of functions too."""
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            name = '.'.join([*base, *([node.module] if node.module else [])])
            yield name
            yield from (f'{name}.{alias.name}' for alias in node.names)


def room_of(name):
    """Return the room of a dotted name, or None outside of mmlit and the doctor."""
    parts = name.split('.')
    if parts[0] == 'mmlit_doctor':
        return 'mmlit_doctor'
    if parts[0] != 'mmlit':
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else 'mmlit'


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def test_imports_point_one_way():
    wrong = []
    for path in modules('mmlit'):
        room = room_of(dotted(path))
        for name in imports(path):
            other = room_of(name)
            # A name of `mmlit` itself is a room, or the version that it hands on.
            if other in (None, room) or (other == 'mmlit' and name == 'mmlit'):
                continue
            if other not in ROOMS[room]:
                wrong.append(f'{path.relative_to(ROOT)} imports {name}')
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('package', sorted(FORBIDDEN))
def test_packages_import_no_strangers(package):
    wrong = [
        f'{path.relative_to(ROOT)} imports {name}'
        for path in modules(package)
        for name in imports(path)
        if name.split('.')[0] in FORBIDDEN[package]
    ]
    assert not wrong, '\n'.join(wrong)


def test_networks_know_no_runner():
    wrong = [
        f'{path.relative_to(ROOT)} imports {name}'
        for room in NO_RUNNER
        for path in modules(f'mmlit/{room}')
        for name in imports(path)
        if name.startswith('mmengine.runner')
    ]
    assert not wrong, '\n'.join(wrong)


def test_the_doctor_stands_alone():
    """Standard library only; functions import the packages that they try out."""
    wrong = [
        f'{path.relative_to(ROOT)} imports {name}'
        for path in modules('mmlit_doctor')
        for name in imports(path, everywhere=False)
        if name.split('.')[0] not in {'mmlit_doctor', *sys.stdlib_module_names}
    ]
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('package', ['mmlit', 'mmlit_doctor', 'mmlit_tools'])
def test_no_circles(package):
    paths = {dotted(path): path for path in modules(package)}
    arrows = {
        name: {other for other in imports(path) if other in paths and other != name}
        for name, path in paths.items()
    }
    # Drop what imports nothing that is left, until nothing changes: a circle stays.
    left = dict(arrows)
    while True:
        free = [name for name, others in left.items() if not others & left.keys()]
        if not free:
            break
        for name in free:
            del left[name]
    assert not left, f'these import each other: {sorted(left)}'


def test_archs_need_no_torch():
    """Configs, converters and documentation read the table of archs cheaply."""
    for room in ('archs', 'arguments', 'errors', 'version'):
        names = {name.split('.')[0] for name in imports(ROOT / f'mmlit/{room}.py')}
        assert 'torch' not in names, room
