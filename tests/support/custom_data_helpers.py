"""Read docs/custom_data.md; make the data and checkpoints that it speaks of."""

import ast
import json
import re
import shutil
from functools import reduce
from pathlib import Path

import torch
from mmengine.config import Config

from support.config_helpers import build
from support.official_models import save_as_the_authors

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / 'docs' / 'custom_data.md'
#: What `tools/make_shapes.py` draws, under the names of the example.
PARTS = dict(circle='screw', triangle='nut', ring='washer')


# --- the document -----------------------------------------------------------------


def section(title):
    """Return the text of a `## title` of the document."""
    (text,) = re.findall(
        rf'^## {title}$(.*?)(?=^## |\Z)', DOCUMENT.read_text(), re.M | re.S
    )
    return text


def blocks(text, language):
    """Return the fenced blocks of a language, without their fences."""
    return re.findall(rf'^```{language}\n(.*?)^```$', text, re.M | re.S)


def recipe(title):
    """Return a recipe's steps, its file's name and text, and what comes after."""
    steps, rest = [], blocks(section(title), 'python')
    while not rest[0].startswith('# my_configs/'):
        steps.append(rest.pop(0))
    return steps, rest[0].splitlines()[0][2:], rest[0], rest[1:]


def commands(title):
    """Return the lines of the section's bash blocks."""
    return ''.join(blocks(section(title), 'bash')).splitlines()


def settings(text, names=None):
    """Return the variables that Python text assigns, given those before it."""
    names = {} if names is None else names
    exec(text, names)
    assigned = [node.targets[0].id for node in ast.parse(text).body]
    return {name: names[name] for name in assigned}


def add_up(texts):
    """Merge what steps assign, each into those before it, as mmengine merges."""
    names = {}
    return reduce(lambda whole, text: merge(whole, settings(text, names)), texts, {})


def merge(old, new):
    """Put `new` over `old`: dicts key by key, everything else whole."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}


def replace(text, snippet):
    """Replace assignments of the text by the snippet's of the same names."""
    lines = text.splitlines()
    fresh = {n.targets[0].id: ast.unparse(n) for n in ast.parse(snippet).body}
    for node in reversed(ast.parse(text).body):
        if node.targets[0].id in fresh:
            lines[node.lineno - 1 : node.end_lineno] = [fresh.pop(node.targets[0].id)]
    assert not fresh, f'not in the file: {list(fresh)}'
    return '\n'.join(lines) + '\n'


# --- what it speaks of ------------------------------------------------------------


def make_workplace(folder, title):
    """Make a checkout with the config where the document says, and its data.

    Returns:
        The path of the config, seen from `folder`.
    """
    from mmlit_tools.shapes.dataset import ensure_shapes

    _, name, text, _ = recipe(title)
    for part in ('configs', 'tools'):
        (folder / part).symlink_to(ROOT / part)
    (folder / name).parent.mkdir()
    (folder / name).write_text(text)
    drawn = ensure_shapes(folder / 'drawn', train=4, val=2, size=96, progress=False)
    dict(Detection=_lay_out_parts, Segmentation=_lay_out_field)[title](
        drawn, folder / 'data'
    )
    shutil.rmtree(drawn)
    return name


def _lay_out_parts(drawn, data):
    (data / 'parts').mkdir(parents=True)
    for split in ('train', 'val'):
        (drawn / split).rename(data / 'parts' / split)
        content = json.loads((drawn / 'annotations' / f'{split}.json').read_text())
        for category in content['categories']:
            category['name'] = PARTS[category['name']]
        (data / 'parts' / f'{split}.json').write_text(json.dumps(content))


def _lay_out_field(drawn, data):
    for split in ('train', 'val'):
        for ours, kind in ((split, 'images'), (f'masks/{split}', 'masks')):
            (data / 'field' / kind).mkdir(parents=True, exist_ok=True)
            (drawn / ours).rename(data / 'field' / kind / split)


def make_checkpoint(path, base):
    """Save the base config's model in the authors' format, with random weights.

    Returns:
        The weights.
    """
    torch.manual_seed(1)
    model = build(Config.fromfile(base))
    # Norms start at 1 and 0: from there nobody could tell where they came from.
    weights = model.state_dict()
    for key, value in weights.items():
        if value.is_floating_point() and 'running_var' not in key:
            value += 0.01 * torch.randn_like(value)
    meta = dict(mmdet_version='2.11.0', epoch=12, iter=88_000)
    save_as_the_authors(model, path, meta, biases='zeros')
    return {key: value.clone() for key, value in weights.items()}


def drop_outlines(folder):
    """Remove the outlines from the json files of the detection recipe."""
    for path in (folder / 'data' / 'parts').glob('*.json'):
        content = json.loads(path.read_text())
        for annotation in content['annotations']:
            del annotation['segmentation']
        path.write_text(json.dumps(content))
