"""A segmentor learns eight images by heart, with mmseg's own tool: minutes of work."""

import re
from pathlib import Path

import pytest

from support.running_tools import ROOT, run

BASE = ROOT / 'configs/segmentation/lit-ti_fpn_fpnhead_8xb2-80k_ade20k-512x512.py'
HOUR = 3600
pytestmark = [pytest.mark.soak, pytest.mark.timeout(HOUR)]
#: The first eight of the training images.
EIGHT = ('000009', '000025', '000030', '000034', '000036', '000042', '000049', '000061')
CONFIG = """
_base_ = {base!r}
max_iters = 100
scale = (256, 192)
resize = dict(type='Resize', scale=scale, keep_ratio=False)
labels = dict(type='LoadAnnotations', reduce_zero_label=True)
pack = dict(type='PackSegInputs')
learn = [dict(type='LoadImageFromFile'), labels, resize, pack]
# Predictions are resized to the image as it is, and compared there.
show = [dict(type='LoadImageFromFile'), resize, labels, pack]
# Nothing drops out: they are to be learnt by heart.
model = dict(
    data_preprocessor=dict(size=(192, 256)), decode_head=dict(dropout_ratio=0.0),
    backbone=dict(init_cfg=None, drop_path_rate=0.0))
eight = dict(data_root={root!r}, indices=8)
here = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=4, dataset=dict(**eight, pipeline=learn), **here)
folders = dict(img_path='images/training', seg_map_path='annotations/training')
shown = dict(**eight, pipeline=show, data_prefix=folders)
val_dataloader = test_dataloader = dict(dataset=shown, **here)
hotter = dict(custom_keys=dict.fromkeys(['neck', 'decode_head'], dict(lr_mult=5.0)))
optim_wrapper = dict(paramwise_cfg=hotter)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
poly = dict(type='PolyLR', power=0.9, eta_min=1e-6, end=max_iters, by_epoch=False)
param_scheduler = [poly]
default_hooks = dict(checkpoint=dict(interval=max_iters, save_best=None))
randomness = dict(seed=0)
"""


def test_semantic_fpn_on_eight_images(tmp_path, data_root):
    root = data_root / 'ade_layout'
    images = sorted((root / 'images' / 'training').iterdir())[:8]
    assert tuple(path.stem[-6:] for path in images) == EIGHT
    config = tmp_path / 'eight.py'
    config.write_text(CONFIG.format(base=str(BASE), root=str(root)))
    mmseg = pytest.importorskip('mmseg', reason='trains a segmentor of mmseg')
    train = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py'
    said = run(train, config, cwd=tmp_path, timeout=HOUR)
    assert float(re.findall(r'mIoU: ([\d.]+)', said)[-1]) >= 50
