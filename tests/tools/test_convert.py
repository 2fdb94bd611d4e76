"""convert_checkpoint.py: the files that it writes, its messages, its refusals."""

import hashlib
import os
import re
from pathlib import Path

import pytest
import torch

from mmlit import LIT, read_checkpoint
from mmlit_tools.convert.command import main
from support.official_files import (
    ABSOLUTE_MICRO,
    RELATIVE_MICRO,
    official_file,
    official_state,
)
from support.running_tools import stopped

ARCH = {'relative': RELATIVE_MICRO, 'absolute': ABSOLUTE_MICRO}
SIZES = {'imagenet': 224, 'detector': 800, 'segmentor': 512}
CASES = [(family, kind) for family in ARCH for kind in SIZES]
CASES.remove(('absolute', 'segmentor'))


@pytest.fixture
def convert(monkeypatch, tmp_path, capsys):
    """Run the tool in an empty folder; return its output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


def save_official(family, kind, name='official.pth'):
    saved = official_file(official_state(ARCH[family], kind), kind, family)
    torch.save(saved, name)
    return saved


def weights(name):
    found = read_checkpoint(name)
    return found['model'] if 'model' in found else found['state_dict']


def maps(family, name, img_size, norms=()):
    """Compute the maps of a LIT that has loaded a file."""
    net = LIT(ARCH[family], img_size=img_size, out_norm_indices=norms)
    prefix, state = 'backbone.', weights(name)
    if any(key.startswith(prefix) for key in state):
        state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    net.load_state_dict(state, strict=False)
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return net.eval()(image)


def check_again(convert):
    convert('back.pth', 'again.pth')
    ours, again = weights('ours.pth'), weights('again.pth')
    assert list(ours) == list(again)
    assert all(torch.equal(ours[key], again[key]) for key in ours)


@pytest.mark.parametrize(('family', 'kind'), CASES)
def test_there_and_back(convert, family, kind):
    official = save_official(family, kind)
    assert '; written to ours.pth' in convert('official.pth', 'ours.pth')
    ours = torch.load('ours.pth', weights_only=True)  # Plain weights: no care needed.
    assert set(ours) == {'meta', 'state_dict'}
    size = SIZES[kind]
    digest = hashlib.sha256(Path('official.pth').read_bytes()).hexdigest()
    assert ours['meta']['source'] == 'official.pth'
    assert ours['meta']['sha256'] == digest
    assert ours['meta']['img_size'] == ((size, size) if family == 'relative' else None)
    others = {k for k in ours['state_dict'] if k.startswith(('neck', 'bbox', 'decode'))}
    assert len(others) == {'imagenet': 0, 'detector': 2, 'segmentor': 1}[kind]

    assert 'written to back.pth' in convert('--to-official', 'ours.pth', 'back.pth')
    back = torch.load('back.pth', weights_only=True)
    container = 'model' if kind == 'imagenet' else 'state_dict'
    assert set(back) == {'meta', container}
    lost = [key for key in official[container] if key not in back[container]]
    dropped = re.compile(r'(head|norm)\.|cls_token|.*relative_position_index$')
    assert all(map(dropped.match, lost)) and bool(lost) == (kind == 'imagenet')
    for key, value in back[container].items():
        if key.endswith('dconv.bias'):
            assert not value.any(), key
        elif key.endswith('running_mean'):
            bias = key.replace('norm_layer.running_mean', 'dconv.bias')
            folded = official[container][key] - official[container][bias]
            assert torch.equal(value, folded), key
        elif key.endswith('pos_embed4'):
            assert torch.equal(value[:, 1:], official[container][key][:, 1:])
            assert not value[:, 0].any()
        else:
            assert torch.equal(value, official[container][key]), key

    check_again(convert)
    norms = {'imagenet': (), 'detector': (1, 2, 3), 'segmentor': (0, 1, 2, 3)}[kind]
    norms = norms if family == 'relative' else ()
    first = maps(family, 'official.pth', size, norms)
    for name in ('ours.pth', 'back.pth'):
        assert all(map(torch.equal, first, maps(family, name, size, norms))), name


@pytest.mark.parametrize(('family', 'kind'), CASES)
def test_the_authors_files(convert, golden_root, family, kind):
    source = golden_root / f'{family}_micro_{kind}.pth'
    convert(source, 'ours.pth')
    convert('--to-official', 'ours.pth', 'back.pth')
    check_again(convert)
    first, back = (maps(family, f, SIZES[kind]) for f in (source, 'back.pth'))
    assert all(map(torch.equal, first, back))


def test_tables_are_resized_like_a_network_does(convert):
    save_official('relative', 'imagenet')
    said = convert('official.pth', 'ours.pth', '--img-size', 512)
    assert 'reference size 512 x 512' in said
    net = LIT(RELATIVE_MICRO, img_size=512)
    net.load_state_dict(weights('official.pth'), strict=False)
    own, found = net.state_dict(), weights('ours.pth')
    assert all(torch.equal(own[key], found[key]) for key in found)
    # Not square is fine here, but nothing that the authors' code could hold.
    convert('ours.pth', 'wide.pth', '--img-size', 320, 512)
    assert read_checkpoint('wide.pth')['meta']['img_size'] == (320, 512)
    said = stopped(main, '--to-official', 'wide.pth', 'never.pth')
    assert "images of 320 x 512 px, the authors' for square ones; --img-size" in said
    assert 'written' in convert('--to-official', 'wide.pth', 'x.pth', '--img-size', 224)
    table = 'layers.2.blocks.0.attn.relative_position_bias_table'
    assert weights('x.pth')[table].shape == (27 * 27, 4)


def test_a_dry_run_shows_every_key_and_writes_nothing(convert, tmp_path):
    official = save_official('absolute', 'imagenet')['model']
    said = convert('official.pth', '--dry-run')
    for key in official:
        assert f' {key} ' in said, key
    assert 'stages.3.pos_embed.absolute_pos_embed' in said
    for note in ('dropped: head', 'dropped: cls_token', 'bias folded into the running'):
        assert note in said
    assert 'as an image; class-token slot left out' in said
    assert said.endswith('nothing is written\n')
    assert [path.name for path in tmp_path.iterdir()] == ['official.pth']
    save_official('relative', 'detector')
    assert 'neck.*' in convert('official.pth', '--dry-run')
    convert('official.pth', 'ours.pth')
    assert 'added: zeros' in convert('--to-official', 'ours.pth', '--dry-run')
    # Class names go with a detector.
    meta = read_checkpoint('ours.pth')['meta']
    assert meta['dataset_meta'] == {'classes': ('person', 'bicycle')}
    convert('--to-official', 'ours.pth', 'back.pth')
    assert read_checkpoint('back.pth')['meta']['CLASSES'] == ('person', 'bicycle')


def test_wrong_arguments(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_official('absolute', 'imagenet', 'lit_ti.pth')
    Path('there.pth').write_text('before')
    Path('folder').mkdir()
    files = ['lit_ti.pth', 'new.pth']
    for arguments, message in (
        (['missing.pth', 'new.pth'], 'SRC missing.pth does not exist'),
        (['lit_ti.pth', 'folder'], 'DST folder is a folder; give the file to write'),
        (['lit_ti.pth', 'no/new.pth'], 'the folder of DST no/new.pth does not exist'),
        (['lit_ti.pth', './lit_ti.pth'], 'is SRC itself'),
        (['lit_ti.pth', 'there.pth'], 'DST there.pth exists; --force replaces it'),
        ([*files, '--img-size', 512], '--img-size has no effect: there'),
        ([*files, '--to-official'], 'absolute layout already'),
    ):
        assert message in stopped(main, *arguments), arguments
    for arguments, message in (
        (['lit_ti.pth'], 'DST is missing: the file to write (or give --dry-run)'),
        ([*files, '--img-size', '31'], '=31 must be at least 32'),
        ([*files, '--img-size', '1', '2', '3'], 'img_size=[1, 2, 3] must be an int or'),
    ):
        with pytest.raises(SystemExit) as usage:
            main(arguments)
        assert usage.value.code == 2 and message in capsys.readouterr().err
    assert Path('there.pth').read_text() == 'before'
    assert not Path('new.pth').exists()


class Evil:
    def __reduce__(self):
        return os.system, ('touch ran',)


def test_wrong_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = official_state(ABSOLUTE_MICRO, 'imagenet')
    unknown = {**state, 'block1.0.mlp.fc3.weight': torch.ones(1)}
    ours = {'state_dict': {'stages.0.patch_embed.proj.weight': torch.ones(1)}}
    resnet = {'conv1.weight': torch.ones(1)}
    for saved, message in (
        ({'epoch': 3}, 'it holds no weights: neither state_dict nor model is among'),
        ({'model': resnet}, 'no backbone of the authors among'),
        ({'model': unknown}, 'block1.0.mlp.fc3.weight'),
        (ours, "the weights are in mmlit's layout already; --img-size resizes"),
        ({'model': state, 'args': Evil()}, 'wrong.pth is refused: it asks for posix.'),
        ([1], 'wrong.pth holds a list and no checkpoint'),
    ):
        torch.save(saved, 'wrong.pth')
        said = stopped(main, 'wrong.pth', 'new.pth')
        assert message in said and said.startswith('convert_checkpoint.py: ')
        assert 'wrong.pth' in said
    assert not Path('ran').exists()
    table = 'layers.2.blocks.0.attn.relative_position_bias_table'
    for value in (None, torch.ones(()), torch.ones(4)):
        state = {**official_state(RELATIVE_MICRO, 'imagenet'), table: value}
        torch.save({'model': state}, 'wrong.pth')
        assert table in stopped(main, 'wrong.pth', 'new.pth')
        said = stopped(main, '--to-official', 'wrong.pth', 'new.pth')
        assert "in the authors' relative layout already" in said
    Path('wrong.pth').write_text('<html>')
    assert 'looks like a web page' in stopped(main, 'wrong.pth', 'new.pth')
