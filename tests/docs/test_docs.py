"""Do what README.md and docs/*.md tell the reader to do.

Fenced blocks are run or built, or say above them why not; then they are resolved, as
are commands within the text. tests/configs/test_custom_data.py follows custom_data.md.
"""

import functools
import re
import subprocess
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS

import mmlit
from support.config_helpers import build_without_data, settings
from support.dists import read_pins
from support.docs_helpers import (
    DOCUMENTS,
    ROOT,
    WITH_TEXT,
    blocks,
    commands,
    fill_in,
    inline_commands,
    make_workplace,
    run_python,
)
from support.this_stack import STACK

pytest.importorskip('mmdet', reason='the documents are for mmdet')
pytest.importorskip('mmseg', reason='the documents are for mmseg')

CONFIGS = {path.name: path for path in (ROOT / 'configs').rglob('*.py')}
SNIPPETS = [b for page in DOCUMENTS for b in blocks(page) if b.is_config]


# --- blocks that are run ---------------------------------------------------------


def is_run(block):
    program = block.language == 'python' and not block.is_config
    return program or block.language == 'bash' and not block.remark_of('not run')


@pytest.mark.slow
@pytest.mark.parametrize(
    'document', [d for d in DOCUMENTS if any(map(is_run, blocks(d)))]
)
def test_commands_and_programs(document, tmp_path):
    make_workplace(tmp_path, document)
    output = ''
    for block in blocks(document):
        if block.remark == 'output':
            assert block.text in output, f'{block}\n{output}'
        elif is_run(block):
            text = fill_in(block.text)
            if block.language == 'python':
                (tmp_path / 'program.py').write_text(text)
                text = 'python program.py'
            output = ''.join(follow(words, tmp_path) for words in commands(text))


def follow(words, folder):
    program, *arguments = words
    if program == 'python':
        status, output = run_python(arguments, folder, HOME=str(folder))
    else:
        shell = ['bash', '-c', ' '.join(words)]
        environment = {'HOME': str(folder), 'PATH': '/usr/bin:/bin'}
        status = subprocess.run(shell, cwd=folder, env=environment).returncode
        output = ''
    assert status == 0, f'{words}\n{output[-5000:]}'
    return output


# --- parts of configs ------------------------------------------------------------


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
    wanted = settings(block.text)
    for name in wanted.keys() - {'_base_'}:
        check_holds(config[name], wanted[name], name)
    model = build_without_data(config)
    assert type(model.backbone) is mmlit.LIT
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    assert type(wrapper.optimizer).__name__ == 'AdamW'
    for hook in config.get('custom_hooks', ()):
        HOOKS.build(hook)


def check_holds(there, wanted, name: str) -> None:
    """Check that what was written came out, whatever was there before."""
    if isinstance(wanted, dict):
        for key in wanted.keys() - {'_delete_'}:
            check_holds(there[key], wanted[key], f'{name}.{key}')
    else:
        assert there == wanted, name


# --- what is not run -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('document', WITH_TEXT)
def test_what_is_not_run_could_start(document, tmp_path):
    """Its tool is there, with its options, its configs and its target of make."""
    marked = [block.text for block in blocks(document) if block.remark_of('not run')]
    for words in [*inline_commands(document), *sum(map(commands, marked), [])]:
        for word in words:
            name = Path(word).name.removesuffix('.py') + '.py'
            if name in CONFIGS:
                assert '/' not in word or (ROOT / word).samefile(CONFIGS[name]), word
            else:
                assert not word.startswith('configs/'), f'there is no {word}'
        while '=' in words[0]:  # A variable of the environment.
            words = words[1:]
        program = Path(words[0]).name
        tool = next((word for word in words if 'tools/' in word), None)
        if program == 'make':
            check_make(words[1:])
        elif program == 'pip':
            check_pip(' '.join(words))
        elif tool:
            words = [word.strip('[]') for word in words]  # [--check]
            options = {w.partition('=')[0] for w in words if w.startswith('--')}
            assert options <= options_of(tool), f'{tool} has no such option: {words}'


def check_make(arguments: list) -> None:
    """Check that make has the targets, and that something reads the variables."""
    for word in arguments:
        name, is_variable, _ = word.partition('=')
        if is_variable:
            readers = [ROOT / 'Makefile', *(ROOT / 'tools' / 'setup').glob('*.py')]
            assert any(name in path.read_text() for path in readers), name
    done = subprocess.run(['make', '-n', *arguments], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr


def check_pip(command: str) -> None:
    """Check that extras are ours, and pins those of the default stack."""
    setup = (ROOT / 'setup.py').read_text(encoding='utf-8')
    for extra in re.findall(r'\[(\w+)\]', command):
        assert f"'{extra}': [" in setup, f'no extra {extra}'
    pins = {}
    for file in ('build.in', 'common.in', 'openmmlab.in', 'mmcv.in', 'torch.txt'):
        pins.update(read_pins(file))
    for name, version in re.findall(r'([\w.-]+)==([\w.]+)', command):
        assert pins.get(name) == version, f'{name}=={version} is not pinned'


@functools.lru_cache(maxsize=None)
def options_of(tool: str) -> set:
    """Return the options in a tool's help; `<mmdet>/tools/...` is as installed."""
    folder = ROOT
    if tool.startswith('<'):
        name, tool = re.fullmatch(r'<(\w+)>/(.*)', tool).groups()
        folder = Path(__import__(name).__file__).parent / '.mim'
    assert (folder / tool).is_file(), tool
    if 'tools/setup/' in tool:
        return set(re.findall(r'--[\w-]+', (folder / tool).read_text()))
    # The shell scripts pass options on.
    helper = re.sub(r'(?:dist|slurm)_(\w+)\.sh', r'\1.py', tool)
    status, output = run_python([str(folder / helper), '--help'], Path('/tmp'))
    assert status == 0, output
    return set(re.findall(r'--[\w-]+', output))
