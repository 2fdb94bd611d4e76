"""Run what a training runs: an operator, a LIT, a checkpoint.

Everything is imported inside of the functions (see check_imports.py).
"""

import os
import re
import tempfile
from pathlib import Path
from typing import List

from .check_cuda import cuda_command
from .findings import Advice, Fault, first_line
from .install import (
    TESTED,
    distribution_of,
    major_minor,
    mmcv_command,
    mmlit_command,
    tested_version,
    version_of,
)

# Between two devices, in float32; relative to the largest value.
TOLERANCE = 1e-3
UNSAFE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


def list_devices() -> List[str]:
    """Return all devices to run on: 'cpu', 'cuda:0', ..."""
    import torch

    return ['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))]


def check_deform_conv(device: str) -> str:
    """Compare mmcv's deformable convolution on a device with torch's convolution."""
    import torch
    from mmcv.ops import deform_conv2d

    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    image, weight = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 2, 2)
    offsets = torch.zeros(2, 8, 4, 4)
    plain = torch.nn.functional.conv2d(image, weight, stride=2)
    inputs = [x.to(device).requires_grad_() for x in (image, offsets, weight)]
    merged = deform_conv2d(*inputs, 2)
    merged.sum().backward()
    # Without offsets it is the convolution that torch computes.
    _compare(
        'without offsets', merged.detach().cpu(), plain, deform_conv_command(device)
    )
    # Moved by a whole pixel, it is that of the moved image.
    moved = deform_conv2d(inputs[0], inputs[1] + 1, inputs[2], 2).detach().cpu()
    image = torch.nn.functional.pad(image, (0, 1, 0, 1))[:, :, 1:, 1:]
    plain = torch.nn.functional.conv2d(image, weight, stride=2)
    _compare('with offsets', moved, plain, deform_conv_command(device))
    if not all(x.grad.isfinite().all() for x in inputs):
        raise Fault('its gradients are not finite', deform_conv_command(device))
    return 'right, with gradients'


def deform_conv_command(device: str) -> str:
    """Return the command that builds the ops again."""
    return mmcv_command() if device == 'cpu' else cuda_command()


def check_lit(device: str) -> str:
    """Compare a LIT on a device with the same on the CPU."""
    import torch

    import mmlit

    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    model = mmlit.LIT('small', img_size=64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'conv_offset' in name:  # It starts at zero: nothing would be deformed.
                parameter.normal_(std=0.01)
        image = torch.randn(1, 3, 64, 96)
        levels = model(image)
        moved = [x.cpu() for x in model.to(device)(image.to(device))]
    for level, other in zip(levels, moved):
        _compare(f'level {tuple(other.shape)}', other, level, lit_command(device))
    return f'{len(levels)} levels of finite values'


def lit_command(device: str) -> str:
    """Return the command for the tested torch, or for mmlit if that is here."""
    tested = TESTED['torch']
    version = version_of('torch')
    if major_minor(version) == major_minor(tested):
        return mmlit_command()
    return f'pip install "torch=={tested}.*" && {mmcv_command()}'


def _compare(what: str, values, wanted, mend: str) -> None:
    if not values.isfinite().all():
        raise Fault(f'{what}: values that are not finite', mend)
    apart = (values - wanted).abs().max().item() / wanted.abs().max().item()
    if apart > TOLERANCE:
        raise Fault(f'{what}: off by {apart:.2g} of the largest value', mend)


def check_checkpoint() -> str:
    """Read a checkpoint as mmengine writes it, without running code of it."""
    import torch
    from mmengine.logging import HistoryBuffer

    import mmlit  # noqa: F401  It lets torch read mmengine's files.

    history = HistoryBuffer([0.5, 0.25], [1, 1])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'epoch_1.pth'
        torch.save({'state_dict': {'x': torch.ones(1)}, 'message_hub': history}, file)
        try:
            loaded = torch.load(file, map_location='cpu')
        except Exception as error:
            # torch's first line is advice to read the file unsafely.
            refused = re.search(r'Unsupported global: GLOBAL \S+', str(error))
            why = refused[0] if refused else first_line(error)
            raise Fault(
                f'a checkpoint as mmengine writes it cannot be read ({why})',
                checkpoint_command(),
            ) from None
    if loaded['message_hub'].mean() != history.mean():
        raise Fault('curves are read with other values', checkpoint_command())
    if os.environ.get(UNSAFE, '').lower() in ('1', 'y', 'yes', 'true'):
        raise Advice(
            f'{UNSAFE} is set: a checkpoint may run any code, and mmlit does without',
            f'unset {UNSAFE}',
        )
    return "mmengine's can be read"


def checkpoint_command() -> str:
    """Return the command for an mmengine whose checkpoints mmlit knows."""
    name, _ = distribution_of('mmengine')
    return f'pip install "{name}=={tested_version("mmengine")}.*"'
