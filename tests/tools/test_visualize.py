"""visualize.py: the command, its mistakes, and what its pictures show."""

from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmlit.errors import UserError
from mmlit.visualization.probe import probe
from mmlit_tools.visualize import command, pictures
from mmlit_tools.visualize.model import load_weights, open_subject
from support.looking_helpers import ARCH, ROOT, open_image, small_lit, write_noise

CONFIGS = ROOT / 'configs'


def write_config(folder, base='detection/mask-rcnn_lit-ti_fpn_shapes.py'):
    """A config with the small LIT, whose images become 128 x 77."""
    path = folder / 'config.py'
    path.write_text(
        f'_base_ = {str(CONFIGS / base)!r}\n'
        'model = dict(backbone=dict(arch=dict(_delete_=True, **%r),\n'
        "    init_cfg=dict(_delete_=True, type='Pretrained',\n"
        "        checkpoint='http://no.invalid/a.pth')))\n" % ARCH
    )
    return path


def test_the_command_draws_and_writes_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    images = [
        str(write_noise(tmp_path / f'{n}.png', seed=i)) for i, n in enumerate('ab')
    ]
    weights = {f'backbone.{k}': v for k, v in small_lit().state_dict().items()}
    torch.save(dict(state_dict=weights), 'weights.pth')
    command.main(['offsets', *images, '--config', 'config.py', '--out-dir', 'one'])
    output = capsys.readouterr().out
    assert 'Weights: initial, seed 0 (no --checkpoint)' in output
    assert '6 PNGs are in one' in output
    names = {f'{i}_offsets_stage{s}.png' for i in 'ab' for s in (1, 2, 3)}
    assert {path.name for path in Path('one').iterdir()} == {*names, 'index.html'}
    options = '--config config.py --out-dir two --checkpoint weights.pth --max-side 160'
    command.main(['attention', images[0], *options.split(), '--stage', '2'])
    assert 'Weights: weights.pth' in capsys.readouterr().out
    names = {f'a_attention_stage2_block{b}.png' for b in (0, 1)}
    assert {path.name for path in Path('two').iterdir()} == {*names, 'index.html'}
    for name in names:
        assert cv2.imread(f'two/{name}').std() > 10
    page = Path('two/index.html').read_text('utf-8')
    assert 'Weights: weights.pth.' in page and '"scale":[1.6,1.6]' in page


def test_segmentation_is_drawn(tmp_path, monkeypatch, capsys):
    """mmseg's preprocessor normalises, and pads to its `size` in training alone."""
    pytest.importorskip('mmseg', reason='the config is for mmseg')
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, 'segmentation/lit-ti_fpn_fpnhead_shapes.py')
    image = write_noise(tmp_path / 'a.png')
    torch.save(small_lit().state_dict(), 'weights.pth')
    options = f'--config {config} --checkpoint weights.pth --out-dir out --stage 2'
    command.main(['offsets', str(image), *options.split()])
    assert '1 PNGs are in out' in capsys.readouterr().out
    assert cv2.imread('out/a_offsets_stage2.png').std() > 10
    assert '"scale":[1.28,1.28' in Path('out/index.html').read_text('utf-8')
    subject = open_subject(Config.fromfile(config), 'weights.pth')
    settings = subject.preprocessor
    assert type(settings).__name__ == 'SegDataPreProcessor'
    single, _ = subject.probe(image)
    assert single.scale == (1.28, pytest.approx(77 / 60))
    resized = cv2.resize(cv2.imread(str(image)), (128, 77))[..., ::-1].copy()
    wanted = torch.from_numpy(resized).permute(2, 0, 1) - settings.mean
    torch.testing.assert_close(single.inputs, (wanted / settings.std)[None])


@pytest.fixture
def seen(tmp_path):
    image = open_image(write_noise(tmp_path / 'a.png'))
    return image, probe(small_lit(), image.inputs)


def options(**changed):
    nothing = dict.fromkeys(('stage', 'block', 'head', 'query', 'cells'))
    return Namespace(**{**nothing, **changed})


def test_attention_is_drawn_where_it_goes(seen):
    image, result = seen
    figures = pictures._attention(options(query=(60, 20)), image, result)
    names = [f'attention_stage{s}_block{b}' for s, b in ((2, 0), (2, 1), (3, 0))]
    assert list(figures) == names
    # Input pixel (121, 41) is in token (2, 7) of stride 16.
    expected = result.attentions[1].weights([(2, 7)])[:, 0].numpy()
    axes = figures['attention_stage2_block1'].axes
    assert len(axes) == 1 + 2 + 1  # mean, heads, colour bar
    for axis, weights in zip(axes, [expected.mean(0), *expected]):
        picture, heat = axis.images
        np.testing.assert_allclose(heat.get_array(), weights / weights.max(), rtol=1e-5)
        assert picture.get_extent() == [0, 100, 60, 0]
        assert heat.get_extent() == [0, 112, 64, 0]  # 14 x 8 squares of 8 pixels
        assert axis.get_xlim() == (0, 100) and axis.get_ylim() == (60, 0)
    # The middle by default; chosen heads alone, after the mean.
    chosen = options(stage=[3], head=[2])
    (figure,) = pictures._attention(chosen, image, result).values()
    assert [a.get_title()[:6] for a in figure.axes[:2]] == ['mean o', 'head 2']
    assert 'x=50, y=30' in figure.get_suptitle()


def test_level_maps(seen):
    image, result = seen
    (figure,) = pictures._features(options(stage=[1]), image, result).values()
    left, right = figure.axes[:2]
    level = result.feature_maps[1][:, :15, :25]  # Of 16 x 28: the rest is padding.
    distances = (level - level.mean(dim=(1, 2), keepdim=True)).norm(dim=0)
    np.testing.assert_allclose(left.images[0].get_array(), distances, rtol=1e-4)
    assert right.images[0].get_array().shape == (15, 25, 3)
    assert left.images[0].get_extent() == [0, 100, 60, 0]


def test_principal_components_of_a_known_map():
    ramp = torch.linspace(0, 1, 12).view(3, 4)
    wave = torch.tensor([1.0, -1, -1, 1]).repeat(3, 1)  # uncorrelated with the ramp
    level = torch.stack([3 * ramp, 0.1 * wave, 4 * ramp, torch.zeros(3, 4)])
    colours, shares = pictures.principal_components(level)
    spread = np.array([25 * ramp.var().item(), 0.01 * wave.var().item(), 0])
    np.testing.assert_allclose(shares, spread / spread.sum(), atol=1e-6)
    for channel, values in enumerate((ramp, wave)):
        seen = colours[..., channel].ravel()
        assert np.corrcoef(seen, values.numpy().ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ('what', 'wrong', 'message'),
    [
        ('offsets', dict(stage=[2], cells=[(8, 0)]), 'stage 2 has 8 rows and 14'),
        ('attention', dict(query=(100, 5)), '--query 100,5 lies outside of 100 x 60'),
        ('attention', dict(stage=[2], block=[1, 2]), '1,2: the network has blocks 0'),
        ('attention', dict(head=[2]), '--head 2: the network has heads 0, 1'),
    ],
)
def test_what_is_not_there_is_named(seen, what, wrong, message):
    with pytest.raises(ValueError, match=message):
        pictures.write_pictures(options(what=what, out_dir='-', **wrong), 'a', *seen)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('offsets a.png --cells 1,2', '--cells needs one --stage'),
        ('features a.png --query 1,2', '--query has no meaning for features'),
        ('attention a.png --stage 1', 'attention has the stages 2, 3'),
        ('attention a.png --query 1', 'a pair such as 12,34'),
        ('attention a.png --block one', 'whole numbers from 0'),
        ('features a.png --max-side 8', '--max-side must be at least 32'),
        ('features a.png --page-mb 0', '--page-mb must be above 0'),
        ('features no.png', 'image no.png does not exist'),
        ('features a.png b/a.png', 'pictures of the same name'),
        ('features a.png --checkpoint no.pth', 'checkpoint no.pth does not exist'),
        ('features a.png --out-dir a.png', '--out-dir a.png is not a folder'),
        ('features a.png --out-dir a.png/x', '--out-dir a.png/x: '),
    ],
)
def test_mistakes_are_told_at_once(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for path in ('a.png', 'b/a.png'):
        write_noise(Path(path))
    Path('c.py').touch()
    monkeypatch.setattr(command, 'open_subject', lambda *_: pytest.fail('too late'))
    with pytest.raises(SystemExit) as stopped:
        command.main(f'--config c.py --out-dir out {arguments}'.split())
    assert message in f'{stopped.value.code} {capsys.readouterr().err}'


def test_weights_of_a_model_or_of_lit_alone(tmp_path):
    path = tmp_path / 'weights.pth'
    lit = small_lit(seed=1).state_dict()
    # The rest of a model has keys too.
    whole = {**{f'backbone.{k}': v for k, v in lit.items()}, 'neck': torch.zeros(1)}
    for state in (dict(state_dict=whole), dict(state_dict=lit), lit):
        torch.save(state, path)
        model = torch.nn.ModuleDict(dict(backbone=small_lit(seed=2)))
        load_weights(model, model['backbone'], str(path))
        loaded = model['backbone'].state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in lit.items())
    for content, message in (
        (dict(head=torch.zeros(1)), 'weights.pth: '),
        (dict(meta='none'), 'holds no weights'),
        ({'stages.1.downsample.norm.weight': torch.zeros(16)}, 'lacks'),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            load_weights(model, model['backbone'], str(path))
