"""The documentation: what it tells the reader to do works.

Every fenced block of README.md and docs/*.md is run or built, or says above it why not;
then it is resolved. docs/custom_data.md is followed by test_custom_data.py.
"""

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS

import mmlit
from config_helpers import build
from docs_helpers import (
    DOCUMENTS,
    ROOT,
    all_blocks,
    blocks,
    commands,
    fill_in,
    inline_commands,
    make_workplace,
)
from warm_python import WarmPython

mmdet = pytest.importorskip('mmdet', reason='the documents are for mmdet')
pytest.importorskip('mmseg', reason='the documents are for mmseg')

#: Whoever adds a block that is not run says so here, too.
NOT_RUN = {'network': 7, 'GPU': 1, 'minutes': 5}
LANGUAGES = {'bash', 'python', 'text', 'bibtex', '{toctree}', '{include}', '{eval-rst}'}
CONFIGS = {path.name: path for path in (ROOT / 'configs').rglob('*.py')}


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    """A Python that has imported the stack."""
    warm = WarmPython(tmp_path_factory.mktemp('warm'))
    yield warm
    warm.close()


# --- blocks that are run ---------------------------------------------------------


def test_every_block_is_run_or_says_why_not():
    found = all_blocks()
    assert {block.language for block in found} <= LANGUAGES
    assert Counter(b.not_run for b in found if b.not_run) == NOT_RUN
    assert all(block.language == 'bash' for block in found if block.not_run)
    remarks = {block.remark.partition(':')[0] for block in found}
    assert remarks == {'', 'not run', 'config on', 'output'}


@pytest.mark.parametrize('document', DOCUMENTS)
def test_commands_and_programs(document, python, tmp_path):
    todo = [
        block
        for block in blocks(document)
        if (block.language == 'bash' and not block.not_run)
        or (block.language == 'python' and not block.is_config)
        or block.remark == 'output'
    ]
    if not todo:
        return
    make_workplace(tmp_path, document)
    output = ''
    for block in todo:
        if block.remark == 'output':
            assert block.text in output, f'{block}\n{output}'
            continue
        text = fill_in(block.text)
        if block.language == 'python':
            (tmp_path / 'program.py').write_text(text)
            text = 'python program.py'
        done = python.shell(text, tmp_path, HOME=str(tmp_path))
        output = done.stdout
        assert done.returncode == 0, f'{block}\n{output[-5000:]}'


# --- parts of configs ------------------------------------------------------------


SNIPPETS = [block for block in all_blocks() if block.is_config]


@pytest.mark.parametrize('block', SNIPPETS, ids=str)
def test_a_part_of_a_config_builds(block, tmp_path):
    text, base = block.text, block.remark_of('config on')
    if not base:
        assert '_base_' in text, f'{block} says neither _base_ nor "config on"'
    else:
        base = str(ROOT / base) if base.startswith('configs/') else base
        text = f'_base_ = {base!r}\n{text}'
    (tmp_path / 'import_mmlit.py').write_text("__import__('mmlit')\n")
    (tmp_path / 'config.py').write_text(text)
    config = Config.fromfile(tmp_path / 'config.py')
    for name, value in settings(block.text).items():
        check_holds(config[name], value, name)
    model = build(config)
    assert type(model.backbone) is mmlit.LIT
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    assert type(wrapper.optimizer).__name__ == 'AdamW'
    for hook in config.get('custom_hooks', ()):
        HOOKS.build(hook)


def settings(text: str) -> dict:
    """What a part of a config assigns, bases left out."""
    names = {}
    exec(text, names)
    assigned = [node.targets[0].id for node in ast.parse(text).body]
    return {name: names[name] for name in assigned if name != '_base_'}


def check_holds(there, wanted, name: str) -> None:
    """What was written is what came out, whatever was there before."""
    if isinstance(wanted, dict):
        for key in wanted.keys() - {'_delete_'}:
            check_holds(there[key], wanted[key], f'{name}.{key}')
    else:
        assert there == wanted, name


# --- what is not run -------------------------------------------------------------


MARKED = [block for block in all_blocks() if block.not_run]


@pytest.mark.parametrize('block', MARKED, ids=str)
def test_what_is_not_run_is_resolved(block, python):
    assert all([resolve(words, python) for words in commands(block.text)]), block


@pytest.mark.parametrize('document', DOCUMENTS)
def test_commands_within_text_are_resolved(document, python):
    for words in inline_commands(document):
        assert resolve(words, python), words


def resolve(words: list, python) -> bool:
    """Whether a command could start: its tool, its options, its configs."""
    for word in words:
        name = Path(word).name.removesuffix('.py') + '.py'
        if name in CONFIGS:
            assert '/' not in word or (ROOT / word).samefile(CONFIGS[name]), word
            build(Config.fromfile(CONFIGS[name]))
        else:
            assert not word.startswith('configs/'), f'there is no {word}'
    while '=' in words[0]:  # A variable of the environment.
        words = words[1:]
    program, *rest = words
    if program in ('python', 'bash') or 'tools/' in program:
        tool = next(word for word in words if 'tools/' in word)
        return check_options(tool, words, python)
    if program == 'make':
        targets = [word for word in rest if '=' not in word]
        done = subprocess.run(
            ['make', '-n', *rest], cwd=ROOT, capture_output=True, text=True
        )
        return bool(targets) and done.returncode == 0
    if program == 'pip':
        extras = re.findall(r'\[(\w+)\]', ' '.join(rest))
        assert all(
            f"'{extra}': [" in (ROOT / 'setup.py').read_text() for extra in extras
        )
        return rest[0] in ('install', 'uninstall', 'wheel')
    # mim's commands are those of test_mim.py.
    mim = (ROOT / 'tests/test_mim.py').read_text()
    return program == 'source' or (program == 'mim' and f"'{rest[0]}'" in mim)


def check_options(tool: str, words: list, python) -> bool:
    """Whether the tool is there and its help names every option."""
    folder = ROOT
    if tool.startswith('<'):  # Of another package, as installed.
        name, tool = re.fullmatch(r'<(\w+)>/(.*)', tool).groups()
        folder = Path(__import__(name).__file__).parent / '.mim'
    assert (folder / tool).is_file(), tool
    # The shell scripts pass options on.
    helper = re.sub(r'(?:dist|slurm)_(\w+)\.sh', r'\1.py', tool)
    done = python.shell(f'python {folder / helper} --help', ROOT)
    options = {word.partition('=')[0] for word in words if word.startswith('--')}
    known = set(re.findall(r'--[\w-]+', done.stdout))
    assert options <= known, f'{tool} has no {options - known}'
    return done.returncode == 0
