"""Load whole detectors in the authors' format through mmdet's `init_detector`.

RetinaNet with tiny and Mask R-CNN with small are saved under official backbone keys,
with the meta of mmcv 1.x, and loaded: they must see in a real image what they saw
before.
"""

import pytest
import torch

from mmlit import LIT
from support import config_helpers
from support.official_files import save_as_the_authors, unsettle

pytest.importorskip('mmdet', reason='the detectors are those of mmdet')
from mmdet.apis import inference_detector, init_detector
from mmdet.evaluation import get_classes

pytestmark = pytest.mark.slow
# Each method and each family of archs.
NAMES = ['retinanet_lit-ti_fpn_1x_coco', 'mask-rcnn_lit-s_fpn_1x_coco']
META = dict(mmdet_version='2.11.0', CLASSES=tuple(get_classes('coco')), epoch=12)
META.update(iter=87960, config="model = dict(type='RetinaNet')")


def config(name):
    """Return the config with a small scale and no more boxes than that needs."""
    cfg = config_helpers.load('detection', f'{name}.py')
    cfg.model.backbone.init_cfg = None
    cfg.test_dataloader.dataset.pipeline[1].scale = (256, 160)
    if 'rpn' in cfg.model.test_cfg:
        cfg.model.test_cfg.rpn.update(nms_pre=200, max_per_img=100)
        cfg.model.test_cfg.rcnn.update(score_thr=0.02, max_per_img=100)
    else:
        cfg.model.test_cfg.update(score_thr=0.02, max_per_img=100)
    return cfg


def source_detector(name):
    """Build a detector of random weights, away from their start, that finds things."""
    torch.manual_seed(0)
    model = init_detector(config(name), None, device='cpu')
    assert isinstance(model.backbone, LIT)
    unsettle(model)
    for key, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and not key.startswith('backbone'):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
            torch.nn.init.zeros_(module.bias)
    for key, module in model.named_modules():
        if key.endswith(('retina_reg', 'rpn_reg', 'fc_reg')):
            torch.nn.init.normal_(module.weight, std=0.002)
        elif key.endswith('retina_cls'):
            torch.nn.init.normal_(module.weight, std=0.006)
            torch.nn.init.constant_(module.bias, -3)
        elif key.endswith('fc_cls'):
            torch.nn.init.normal_(module.weight, std=0.1)
    return model


@pytest.mark.parametrize('name', NAMES)
def test_a_whole_detector_sees_what_it_saw(tmp_path, data_root, name):
    image = str(sorted((data_root / 'coco_tiny' / 'val2017').glob('*.jpg'))[0])
    model = source_detector(name)
    expected = inference_detector(model, image).pred_instances
    assert (expected.scores > 0.05).sum() >= 5
    assert len(expected.labels.unique()) > 1

    save_as_the_authors(model, tmp_path / 'zeros.pth', META, 'zeros')
    loaded = init_detector(config(name), str(tmp_path / 'zeros.pth'), device='cpu')
    assert loaded.dataset_meta['classes'] == META['CLASSES']
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    found = inference_detector(loaded, image).pred_instances
    assert set(found.keys()) == set(expected.keys())
    for key, value in expected.items():
        assert (torch.as_tensor(found[key]) == torch.as_tensor(value)).all(), key
