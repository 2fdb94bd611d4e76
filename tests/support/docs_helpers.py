"""Read the commands of README.md and docs/*.md; make a place to run them in.

A comment right above a fence, unseen where the page is read, says what is special:

- `<!-- not run: network -->`, `GPU` or `minutes` (more than one): why the tests do not
  run it. They resolve it instead: configs, options, targets of make.
- `<!-- config on: BASE -->`: settings to be added to a config that inherits BASE.
- `<!-- output -->`: what the block before it prints.
"""

import ast
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from mmlit import LIT
from mmlit.archs import ARCHS
from support.config_helpers import make_checkpoint
from support.micro_models import MICRO
from support.official_files import official_state, save_in_full

ROOT = Path(__file__).resolve().parents[2]
#: docs/custom_data.md has tests of its own: test_custom_data.py follows it.
PAGES = sorted(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md'))
DOCUMENTS = ['README.md', *(page for page in PAGES if 'custom_data' not in page)]
#: Those whose commands within text are resolved.
WITH_TEXT = [*DOCUMENTS, 'docs/custom_data.md', 'tools/README.md', 'configs/README.md']
TOOLS = {path.name for path in (ROOT / 'tools').glob('*.*') if path.suffix != '.md'}
BLOCK = re.compile(
    # After the language, a directive has its argument: ```{include} FILE.
    r'^(?:<!-- (?P<remark>[^\n]+) -->\n)?```(?P<language>[\w{}-]*)(?: [^\n]*)?\n'
    r'(?P<text>.*?)^```$',
    re.M | re.S,
)
#: Words of the documents that stand for something of the reader's.
PLACEHOLDERS = {
    **{r'\bCFG\b|\bCONFIG\b': 'small.py', r'\bCKPT\b|\bCHECKPOINT\b': 'small.pth'},
    r'\bIMAGE\b(\.\.\.)?': 'image.png',
    r'\bOUT\.onnx\b': 'model.onnx',
    r'\bDIR\b|\bOUT\b': 'out',
    r'/path/to/': '',
}
#: CONFIG: the smallest LIT in the demo's detector, and its data.
SMALL = f"""
_base_ = 'configs/detection/mask-rcnn_lit-ti_fpn_shapes.py'
shapes = dict(train=2, val=2, size=64)
model = dict(
    backbone=dict(arch={dict(MICRO, _delete_=True)}, img_size=64),
    neck=dict(in_channels={list(MICRO['embed_dims'])}),
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=5)))
train_cfg = dict(max_epochs=1)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_dataloader = dict(batch_size=2, **val_dataloader)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    line: int
    remark: str
    language: str
    text: str

    def __str__(self) -> str:
        return f'{self.document}:{self.line}'

    @property
    def is_config(self) -> bool:
        """Return whether it is (part of) a config: Python that only assigns."""
        nodes = ast.parse(self.text).body if self.language == 'python' else [None]
        return all(isinstance(node, ast.Assign) for node in nodes)

    def remark_of(self, kind: str) -> str:
        """Return what the comment above says after `kind: `."""
        return self.remark.partition(f'{kind}: ')[2]


def blocks(document: str) -> list:
    """Return the fenced blocks of a document, in order."""
    text = (ROOT / document).read_text(encoding='utf-8')
    return [
        Block(document, text.count('\n', 0, m.start('text')), **m.groupdict(default=''))
        for m in BLOCK.finditer(text)
    ]


def fill_in(text: str) -> str:
    """Put what lies in the workplace for the reader's own."""
    for word, ours in PLACEHOLDERS.items():
        text = re.sub(word, ours, text)
    return text


def commands(text: str) -> list:
    """Return the commands of a bash block, each as a list of words."""
    lines = text.replace('\\\n', ' ').replace(' && ', '\n').splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def inline_commands(document: str) -> list:
    """Return the command lines that stand within text, as lists of words."""
    text = (ROOT / document).read_text(encoding='utf-8')
    outside = BLOCK.sub('', text)
    spans = re.findall(r'(?<!`)`([^`]+)`(?!`)', outside)
    variables = r'(?:[A-Z]\w*=\S* )*'
    starts = re.compile(
        rf'{variables}(?:(?:python|bash) )?(?:\S*/)?tools/\w+\.(?:py|sh)\b'
        rf'|{variables}make [\w-]|python -[cm] |(?:pip|mim|jupyter) [a-z]'
    )
    found = [
        # README.md and tools/README.md call a tool by its name alone, too.
        f'tools/{span}' if span.partition(' ')[0] in TOOLS and ' ' in span else span
        for span in map(' '.join, map(str.split, spans))
    ]
    return [words for span in found if starts.match(span) for words in commands(span)]


def make_workplace(folder: Path, document: str) -> Path:
    """Copy the checkout's configs and tools; make what the document speaks of."""
    for part in ('configs', 'tools'):
        skip = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / part, folder / part, ignore=skip)
    (folder / 'small.py').write_text(SMALL)
    pixels = np.random.default_rng(0).integers(0, 256, (240, 400, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / 'image.png'), pixels)
    make_checkpoint(folder / 'small.pth', folder / 'small.py')
    if document == 'docs/weights.md':
        small = ARCHS['small']
        for name, kind in (('lit_s', 'imagenet'), ('mask_rcnn_lit_s', 'detector')):
            state = official_state(vars(small), kind, dense=False)
            save_in_full(folder / f'{name}.pth', state, kind)
        torch.save(LIT('small').state_dict(), folder / 'epoch_12.pth')
    return folder


FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(
    'torch cv2 mmcv.ops mmdet.apis mmdet.engine mmdet.evaluation mmseg.apis mmlit'
    ' support.docs_helpers'.split()
)


def run_python(arguments, folder, **environment):
    """Do what `python ARGUMENTS` does in a folder; return its status and output.

    A tool spends most of a short run on importing torch, mmdet and mmseg: a fork of a
    process that has imported them need not.
    """
    output = folder / 'output.txt'
    own = (arguments, folder, output, environment)
    (process := FORKS.Process(target=_be_python, args=own)).start()
    process.join(600)
    process.kill()
    return process.exitcode, output.read_text(errors='replace')


def _be_python(arguments, folder, output, environment):
    with open(output, 'w') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.update(environment, MPLBACKEND='Agg', OMP_NUM_THREADS='1')
    torch.set_num_threads(1)  # What a fork of several does is anyone's guess.
    script, *rest = sys.argv = arguments
    if script == '-c':
        sys.argv = ['-c', *rest[1:]]
        exec(compile(rest[0], '<string>', 'exec'), {'__name__': '__main__'})
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
        runpy.run_path(script, run_name='__main__')
