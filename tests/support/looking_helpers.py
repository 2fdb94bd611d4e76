"""A small LIT and images to look into, and a browser to look with."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.model import ImgDataPreprocessor
from PIL import Image

from mmlit import LIT
from mmlit.visualization.image import load_image
from support.archs import RELATIVE

ROOT = Path(__file__).resolve().parents[2]
ARCH = {**RELATIVE, 'embed_dims': (8, 16, 32, 64), 'num_heads': (1, 2, 2, 4)}
ARCH['drop_path_rate'] = 0.2
#: Pictures of 100 x 60 become inputs of 200 x 120, padded to 224 x 128.
SCALE = 2.0
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(200, 120), keep_ratio=True),
]


def small_lit(seed=0, **options):
    """Weights large enough for offsets and attention to be seen."""
    torch.manual_seed(seed)
    lit = LIT(ARCH, img_size=(128, 224), **options)
    spreads = {'conv_offset.weight': 0.1, 'qkv.weight': 0.3, 'bias_table': 1.0}
    for name, parameter in lit.named_parameters():
        for part, std in spreads.items():
            if part in name:
                torch.nn.init.normal_(parameter, std=std)
    return lit.eval()


def write_noise(path, width=100, height=60, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def preprocessor():
    return ImgDataPreprocessor([120.0] * 3, [60.0] * 3, 32, bgr_to_rgb=True)


def open_image(path, pipeline=PIPELINE):
    return load_image(path, Compose(pipeline).transforms, preprocessor())


def open_browser(folder):
    """A headless Chromium that cannot reach the network; skips where there is none."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='no selenium')
    names = ('chromium', 'chromium-browser', 'google-chrome')
    browser = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which('chromedriver')
    if browser is None or driver is None:
        pytest.skip(f'no browser: {names} -> {browser}, chromedriver -> {driver}')
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    for flag in (
        '--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run '
        '--disable-background-networking --disable-component-update --disable-sync '
        '--disable-dev-shm-usage --window-size=1300,900 --force-device-scale-factor=1 '
        f'--host-resolver-rules=MAP*~NOTFOUND --user-data-dir={folder}'
    ).split():
        options.add_argument(flag.replace('MAP*~', 'MAP * ~'))
    # With both paths given, selenium looks for nothing, and downloads nothing.
    service = webdriver.ChromeService(executable_path=driver)
    return webdriver.Chrome(options=options, service=service)
