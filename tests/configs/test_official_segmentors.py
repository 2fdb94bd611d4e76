"""Load segmentors in the authors' format through mmseg's `init_model`.

The authors' file has to give the maps that they computed from it. Whole segmentors of
two archs are saved under official backbone keys, with the meta of mmcv 1.x, and
loaded: they must see in a real image what they saw before.
"""

import pytest
import torch

from mmlit import LIT
from support import config_helpers
from support.golden_files import difference, full
from support.official_files import RELATIVE_MICRO, precision, save_as_the_authors

from support.official_files import unsettle  # isort: skip

pytest.importorskip('mmseg', reason='the segmentors are those of mmseg')
from mmseg.apis import inference_model, init_model
from mmseg.utils import get_classes, get_palette

META = dict(mmseg_version='0.13.0', CLASSES=tuple(get_classes('ade')), iter=80000)
META.update(PALETTE=get_palette('ade'), config="model = dict(type='EncoderDecoder')")


def config(letter):
    """Return the config with a small scale."""
    name = f'lit-{letter}_fpn_fpnhead_8xb2-80k_ade20k-512x512.py'
    cfg = config_helpers.load('segmentation', name)
    cfg.test_dataloader.dataset.pipeline[1].scale = (128, 64)
    return cfg


@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float32, 5e-5), (torch.float64, 1e-7)]
)
def test_the_authors_file_gives_the_authors_maps(golden_root, dtype, tolerance):
    name = 'relative_micro_segmentor'
    micro = config_helpers.shrink(config('s'), RELATIVE_MICRO)
    with precision(dtype):
        model = init_model(micro, str(golden_root / f'{name}.pth'), 'cpu')
    assert type(model.backbone) is LIT
    # The file holds no classes, and the config's number of them is ADE20K's.
    assert model.dataset_meta['classes'] == get_classes('ade')
    ((image, expected),) = full(golden_root, name).cases
    with torch.no_grad():
        maps = model.backbone(image.to(dtype))
    assert len(maps) == len(expected) == 4
    for found, wanted in zip(maps, expected):
        assert difference(found, wanted) < tolerance


@pytest.fixture
def logits(data_root):
    """Return what gives the score of each class at each pixel of an image."""
    folder = data_root / 'ade_layout' / 'images' / 'validation'
    image = str(sorted(folder.glob('*.jpg'))[0])

    def run(model):
        with precision(next(model.parameters()).dtype):
            return inference_model(model, image).seg_logits.data

    return run


@pytest.mark.slow
@pytest.mark.parametrize('letter', ['ti', 's'])
def test_a_whole_segmentor_sees_what_it_saw(tmp_path, logits, letter):
    torch.manual_seed(0)
    with precision(torch.float64):
        model = init_model(config(letter), None, 'cpu')
    unsettle(model)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    expected = logits(model)
    assert len(expected.argmax(0).unique()) > 5

    for biases in ('zeros', 'random'):
        path = tmp_path / f'{biases}.pth'
        save_as_the_authors(model, path, META, biases)
        with precision(torch.float64):
            loaded = init_model(config(letter), str(path), 'cpu')
        assert loaded.dataset_meta['classes'] == META['CLASSES']
        found = logits(loaded)
        assert found.dtype == torch.float64
        assert difference(found, expected) < 1e-10
        if biases == 'zeros':
            for key, value in model.state_dict().items():
                assert torch.equal(loaded.state_dict()[key], value), key
            assert torch.equal(found, expected)
