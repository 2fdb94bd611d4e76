"""Compare the built mmcv's ops with their definitions in plain PyTorch."""

import pytest
import torch
from torch.nn.functional import conv2d, grid_sample

ops = pytest.importorskip('mmcv.ops')


def sample(image, x, y):
    """Return `image` (C, H, W) at pixel coordinates, bilinear, with zeros outside."""
    height, width = image.shape[-2:]
    grid = torch.stack(
        [2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1
    ).reshape(1, 1, -1, 2)
    values = grid_sample(image[None], grid, align_corners=True)
    return values.reshape(len(image), *x.shape)


def test_nms_keeps_what_no_better_box_covers():
    torch.manual_seed(0)
    corners = torch.rand(200, 2) * 50
    boxes = torch.cat([corners, corners + torch.rand(200, 2) * 30 + 1], dim=1)
    scores = torch.rand(200)
    kept = []
    for index in scores.argsort(descending=True).tolist():
        for other in kept:
            low = torch.maximum(boxes[index, :2], boxes[other, :2])
            high = torch.minimum(boxes[index, 2:], boxes[other, 2:])
            inter = (high - low).clamp(min=0).prod()
            areas = [(boxes[i, 2:] - boxes[i, :2]).prod() for i in (index, other)]
            if inter / (sum(areas) - inter) > 0.5:
                break
        else:
            kept.append(index)
    found, order = ops.nms(boxes, scores, iou_threshold=0.5)
    assert order.tolist() == kept and len(kept) < 200
    assert torch.equal(found, torch.cat([boxes, scores[:, None]], dim=1)[kept])


def test_roi_align_is_the_mean_of_samples():
    torch.manual_seed(0)
    image = torch.randn(1, 3, 12, 14, requires_grad=True)
    rois = torch.tensor([[0.0, 4.0, 3.0, 21.0, 17.0], [0.0, 2.0, 6.0, 9.0, 20.0]])
    output = ops.roi_align(image, rois, (2, 3), 0.5, 2, 'avg', True)
    for roi, found in zip(rois, output):
        left, top, right, bottom = (roi[1:] * 0.5 - 0.5).tolist()
        x = left + (torch.arange(6) + 0.5) * (right - left) / 6
        y = top + (torch.arange(4) + 0.5) * (bottom - top) / 4
        values = sample(image[0], *torch.meshgrid(x, y, indexing='xy'))
        expected = values.reshape(3, 2, 2, 3, 2).mean(dim=(2, 4))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(output.sum(), image)
    # Each sample gives its weight away, and all lie inside.
    torch.testing.assert_close(gradient.sum(), torch.tensor(2 * 3 * 6.0))


def test_deform_conv_is_a_convolution_of_samples():
    torch.manual_seed(0)
    image = torch.randn(2, 4, 9, 8)
    conv = ops.DeformConv2d(4, 5, 3, stride=2, padding=1)
    offset = torch.randn(2, 18, 5, 4) * 2
    output = conv(image, offset)
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(4), indexing='ij')
    for picture, shift, found in zip(image, offset, output):
        taps = []
        for tap in range(9):
            y = rows * 2 - 1 + tap // 3 + shift[2 * tap]
            x = columns * 2 - 1 + tap % 3 + shift[2 * tap + 1]
            taps.append(sample(picture, x, y))
        columns_of_taps = torch.stack(taps, dim=1).reshape(1, 36, 5, 4)
        expected = conv2d(columns_of_taps, conv.weight.reshape(5, 36, 1, 1))[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
