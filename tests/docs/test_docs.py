"""The documentation: what it tells the reader to do works.

Every fenced block of README.md and docs/*.md is run or built, or says above it why not;
then it is resolved, as are commands within the text. docs/custom_data.md is followed by
test_custom_data.py.
"""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS

import mmlit
from support.config_helpers import build
from support.docs_helpers import (
    CUSTOM_DATA,
    DOCUMENTS,
    ROOT,
    WITH_TEXT,
    all_blocks,
    blocks,
    commands,
    fill_in,
    inline_commands,
    make_workplace,
)
from support.pins import read_pins
from support.this_stack import STACK
from support.warm_python import WarmPython

mmdet = pytest.importorskip('mmdet', reason='the documents are for mmdet')
pytest.importorskip('mmseg', reason='the documents are for mmseg')

#: Whoever adds a block that is not run says so here, too.
NOT_RUN = {'network': 11, 'GPU': 6, 'minutes': 5}
LANGUAGES = {'bash', 'python', 'text', 'bibtex', '{toctree}', '{include}', '{eval-rst}'}
MIM = ROOT / '.build' / 'mim' / 'bin' / 'mim'
#: Of the default stack, which is the one that the documents install by hand.
PINS = {
    name: version
    for file in ('build.in', 'common.in', 'openmmlab.in', 'mmcv.in', 'torch.txt')
    for name, version in read_pins(file).items()
}
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
    assert all(block.language == 'bash' for block in found if block.not_run)
    marked = [b for b in (*found, *blocks(CUSTOM_DATA)) if b.not_run]
    assert Counter(block.not_run for block in marked) == NOT_RUN
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
        if base.startswith('mmseg::') and STACK == 'onedl':
            pytest.skip('mmseg:: bases do not load in onedl-mmsegmentation')
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


def test_what_needs_gpus_in_the_recipes_says_so():
    """test_custom_data.py resolves it: options of the scripts, the wrapper's name."""
    needs_gpus = re.compile(r'dist_train\.sh|AmpOptimWrapper')
    for block in blocks(CUSTOM_DATA):
        assert (block.not_run == 'GPU') == bool(needs_gpus.search(block.text)), block


@pytest.mark.parametrize('document', WITH_TEXT)
def test_commands_within_text_are_resolved(document, python):
    for words in inline_commands(document):
        assert resolve(words, python), words


def test_the_commands_within_text_are_found():
    found = {document: inline_commands(document) for document in WITH_TEXT}
    assert ['make', 'setup', 'MAX_JOBS=1'] in found['docs/troubleshooting.md']
    assert ['mim', 'install', 'mmcv'] in found['docs/get_started.md']
    assert ['make', 'demo'] in found['configs/README.md']
    assert ['tools/test.py', 'CONFIG', 'CHECKPOINT'] in found['tools/README.md']
    (code,) = (words for words in found['docs/using_lit.md'] if '-c' in words)
    assert code[0] == 'python' and len(code) == 3


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
    if 'tools/' not in program:
        program = Path(program).name  # pip of .venv/bin/pip
    if program.startswith('python') and rest[0] == '-c':
        return python.shell(f'python -c {shlex.quote(rest[1])}', ROOT).returncode == 0
    if program.startswith('python') and rest[0] == '-m':
        return importlib.util.find_spec(rest[1]) is not None
    if program in ('python', 'bash') or 'tools/' in program:
        tool = next(word for word in words if 'tools/' in word)
        return check_options(tool, words, python)
    if program == 'make':
        return check_make(rest)
    if program == 'pip':
        return check_pip(rest)
    if program == 'pip-audit':
        return all((ROOT / word).is_file() for word in rest if '/' in word)
    if program == 'jupyter':
        return rest[0] == 'notebook' and (ROOT / rest[1]).is_file()
    # mim is asked itself, below, where it is installed.
    return program in ('source', 'mim')


def check_make(arguments: list) -> bool:
    """Whether make has the targets, and something reads the variables."""
    targets = [word for word in arguments if '=' not in word]
    readers = (ROOT / 'Makefile', *(ROOT / 'tools' / 'setup').glob('*.py'))
    text = '\n'.join(path.read_text(encoding='utf-8') for path in readers)
    for word in set(arguments) - set(targets):
        name = word.partition('=')[0]
        read = rf"\$\({name}\)|environ\.get\('{name}'|environ\['{name}'\]"
        assert re.search(read, text), f'nothing reads {name}'
    done = subprocess.run(['make', '-n', *arguments], cwd=ROOT, capture_output=True)
    return bool(targets) and done.returncode == 0


def check_pip(arguments: list) -> bool:
    """Whether the extras are ours, and the pins those of the set-up."""
    text = ' '.join(arguments)
    setup = (ROOT / 'setup.py').read_text(encoding='utf-8')
    for extra in re.findall(r'\[(\w+)\]', text):
        assert f"'{extra}': [" in setup, f'no extra {extra}'
    for name, version in re.findall(r'([\w.-]+)==(\S+)', text):
        assert PINS.get(name) == version, f'{name}=={version} is not what is pinned'
    return arguments[0] in ('check', 'install', 'uninstall', 'wheel')


@pytest.mark.skipif(not MIM.is_file(), reason=f'no {MIM} (`make mim` makes it)')
def test_mim_has_the_commands_and_options(python, tmp_path):
    lines = [words for block in MARKED for words in commands(block.text)]
    lines += [words for name in WITH_TEXT for words in inline_commands(name)]
    lines = [words[1:] for words in lines if Path(words[0]).name == 'mim']
    for command, *rest in lines:
        done = subprocess.run(
            [str(MIM), command, '--help'],
            env={**os.environ, 'HOME': str(tmp_path)},  # mim keeps a cache there.
            stdout=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0, f'mim has no {command}'
        known = set(re.findall(r'--[\w-]+', done.stdout))
        options = {word for word in rest if word.startswith('--')}
        names = [rest[i + 1] for i, word in enumerate(rest) if word == '--config']
        if command in ('train', 'test'):
            names.append(rest[1].removesuffix('.py'))
            # What mim does not know it hands on to the tool.
            tool = ['python', f'tools/{command}.py', *(options - known)]
            assert check_options(tool[1], tool, python)
        else:
            assert options <= known, f'mim {command} has no {options - known}'
        assert all(f'{name}.py' in CONFIGS for name in names), names
    used = {command for command, *_ in lines}
    assert used == {'install', 'search', 'download', 'train', 'test'}


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
    words = [word.strip('[]') for word in words]  # [--check]
    options = {word.partition('=')[0] for word in words if word.startswith('--')}
    known = set(re.findall(r'--[\w-]+', done.stdout))
    assert options <= known, f'{tool} has no {options - known}'
    return done.returncode == 0
