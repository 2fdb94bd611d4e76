"""Load whole detectors in the authors' format through mmdet's `init_detector`.

RetinaNet with tiny and Mask R-CNN with small are saved under official backbone keys,
with the meta of mmcv 1.x, and loaded: they must see in a real image what they saw
before.
"""

import pytest
import torch

from mmlit import LIT
from support import config_helpers
from support.official_files import precision, save_as_the_authors, unsettle

pytest.importorskip('mmdet', reason='the detectors are those of mmdet')
from mmcv.ops.nms import ext_module as nms_ops
from mmdet.apis import inference_detector, init_detector
from mmdet.evaluation import get_classes

pytestmark = pytest.mark.slow
# Each method and each family of archs.
NAMES = ['retinanet_lit-ti_fpn_1x_coco', 'mask-rcnn_lit-s_fpn_1x_coco']
META = dict(mmdet_version='2.11.0', CLASSES=tuple(get_classes('coco')), epoch=12)
META.update(iter=87960, config="model = dict(type='RetinaNet')")


def config(name, dtype):
    """Return the config with a small scale and no more boxes than that needs."""
    cfg = config_helpers.load('detection', f'{name}.py')
    cfg.model.backbone.init_cfg = None
    cfg.test_dataloader.dataset.pipeline[1].scale = (256, 160)
    if 'rpn' in cfg.model.test_cfg:
        cfg.model.test_cfg.rpn.update(nms_pre=200, max_per_img=100)
        cfg.model.test_cfg.rcnn.update(score_thr=0.02, max_per_img=100)
        if dtype is torch.float64:
            cfg.model.roi_head.mask_head = None  # mmdet pastes masks in float32 only
    else:
        cfg.model.test_cfg.update(score_thr=0.02, max_per_img=100)
    return cfg


def source_detector(name, dtype):
    """Build a detector of random weights, away from their start, that finds things."""
    torch.manual_seed(0)
    with precision(dtype):
        model = init_detector(config(name, dtype), None, device='cpu')
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


@pytest.fixture
def detections(data_root, monkeypatch):
    """Return what predicts the instances of a detector in an image."""
    image = str(sorted((data_root / 'coco_tiny' / 'val2017').glob('*.jpg'))[0])
    real = nms_ops.nms

    def suppress(boxes, scores, **kwargs):
        return real(boxes.float(), scores.float(), **kwargs)

    monkeypatch.setattr(nms_ops, 'nms', suppress)  # mmcv has it in float32 only

    def run(model):
        with precision(next(model.parameters()).dtype):
            return inference_detector(model, image).pred_instances

    return run


def load(name, path, dtype):
    with precision(dtype):
        return init_detector(config(name, dtype), str(path), device='cpu')


@pytest.mark.parametrize('name', NAMES)
def test_float32_without_biases_is_exact(tmp_path, detections, name):
    model = source_detector(name, torch.float32)
    expected = detections(model)
    assert (expected.scores > 0.05).sum() >= 5
    assert len(expected.labels.unique()) > 1

    save_as_the_authors(model, tmp_path / 'zeros.pth', META, 'zeros')
    loaded = load(name, tmp_path / 'zeros.pth', torch.float32)
    assert loaded.dataset_meta['classes'] == META['CLASSES']
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    found = detections(loaded)
    assert set(found.keys()) == set(expected.keys())
    for key, value in expected.items():
        assert (torch.as_tensor(found[key]) == torch.as_tensor(value)).all(), key


@pytest.mark.parametrize('name', NAMES)
def test_float64_with_random_biases(tmp_path, detections, name):
    model = source_detector(name, torch.float64)
    expected = detections(model)
    assert expected.scores.dtype == torch.float64
    save_as_the_authors(model, tmp_path / 'random.pth', META, 'random')
    found = detections(load(name, tmp_path / 'random.pth', torch.float64))
    assert torch.equal(found.labels, expected.labels)
    assert torch.allclose(found.scores, expected.scores, rtol=0, atol=1e-10)
    assert torch.allclose(found.bboxes, expected.bboxes, rtol=0, atol=1e-7)
