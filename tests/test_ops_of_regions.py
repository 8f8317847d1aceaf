"""Served pooling of regions, called through mmcv's own wrappers."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmcv import ops
from ops_inputs import devices, random_boxes
from torch import Tensor


@devices
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_and_its_gradient_are_torchvision_s(device, aligned, ratio):
    image = torch.rand(2, 3, 16, 20, device=device, requires_grad=True)
    index = torch.tensor([[0.0], [1], [1], [0], [1]])
    rois = torch.cat([index, random_boxes(5)], 1).to(device)
    ours = ops.roi_align(image, rois, (3, 4), 0.5, ratio, 'avg', aligned)
    theirs = torchvision.ops.roi_align(
        image, rois, (3, 4), 0.5, ratio, aligned
    )
    assert torch.equal(ours, theirs)
    weight = torch.rand_like(ours)
    (expected,) = torch.autograd.grad((theirs * weight).sum(), image)
    (found,) = torch.autograd.grad((ours * weight).sum(), image)
    torch.testing.assert_close(found, expected)


def test_roi_align_takes_low_precision_and_no_regions():
    image = torch.rand(1, 2, 8, 8)
    rois = torch.tensor([[0.0, 1, 1, 6, 6]])
    exact = ops.roi_align(image, rois, 2)
    low = ops.roi_align(image.bfloat16(), rois.bfloat16(), 2)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact, atol=0.01, rtol=0.02)
    image.requires_grad_()
    none = ops.roi_align(image, rois[:0], 2)
    assert none.shape == (0, 2, 2, 2)
    none.sum().backward()
    assert image.grad.abs().sum() == 0


def _roi_align_max(image: Tensor, roi: list, size: int, ratio: int) -> Tensor:
    """Samples bin by bin with grid_sample, away from the border."""
    _, x1, y1, x2, y2 = roi
    rows = []
    for i in range(size):
        for j in range(size):
            steps = (torch.arange(ratio, dtype=image.dtype) + 0.5) / ratio
            y = y1 + (i + steps) * (y2 - y1) / size
            x = x1 + (j + steps) * (x2 - x1) / size
            # aligned: coordinate 0.5 is the centre of the first pixel.
            grid = torch.stack(
                torch.meshgrid(
                    2 * y / image.shape[2] - 1,
                    2 * x / image.shape[3] - 1,
                    indexing='ij',
                )[::-1],
                -1,
            )
            sampled = F.grid_sample(image, grid[None], align_corners=False)
            rows.append(sampled.flatten(2).amax(2)[0])
    return torch.stack(rows, -1).view(-1, size, size)


def test_roi_align_max_and_its_gradient_match_grid_sample():
    image = torch.rand(1, 3, 12, 14).double().requires_grad_()
    rois = torch.tensor([[0.0, 2.2, 1.7, 9.9, 8.3]]).double()
    ours = ops.roi_align(image, rois, 3, 1.0, 2, 'max', True)[0]
    theirs = _roi_align_max(image, rois[0].tolist(), 3, 2)
    torch.testing.assert_close(ours, theirs)
    weight = torch.rand_like(ours)
    (expected,) = torch.autograd.grad((theirs * weight).sum(), image)
    (found,) = torch.autograd.grad((ours * weight).sum(), image)
    torch.testing.assert_close(found, expected)


def test_roi_align_max_samples_every_pixel_by_default():
    image = torch.zeros(2, 1, 8, 8)
    image[1, 0, 1, 6] = 7
    # Six pixels in two bins: three samples, on pixel centres.
    rois = torch.tensor([[1.0, 1, 1, 7, 7], [1, 3, 3, 3, 3]])
    out = ops.roi_align(image, rois, 2, 1.0, 0, 'max', True)
    assert out[0, 0].tolist() == [[0, 7], [0, 0]]
    assert out[1].abs().sum() == 0
    # Without half-pixel alignment a region is at least one pixel wide.
    image[1, 0, 4, 4] = 9
    out = ops.roi_align(image, rois[1:], 1, 1.0, 0, 'max', False)
    assert out.item() == 9 / 4


def test_roi_pool_on_whole_pixels_is_torchvision_s():
    image = torch.randn(2, 3, 12, 12, requires_grad=True)
    rois = torch.tensor(
        [
            [0.0, 0, 0, 11, 11],
            [1, 2, 3, 7, 9],
            [1, 9, 9, 30, 30],
            [0, 4, 4, 4, 4],
        ]
    )
    ours = ops.roi_pool(image, rois, (3, 2), 1.0)
    theirs = torchvision.ops.roi_pool(image, rois, (3, 2), 1.0)
    assert torch.equal(ours, theirs)
    weight = torch.rand_like(ours)
    (expected,) = torch.autograd.grad((theirs * weight).sum(), image)
    (found,) = torch.autograd.grad((ours * weight).sum(), image)
    torch.testing.assert_close(found, expected)


def test_roi_pool_does_not_round_corners():
    image = torch.arange(64.0).view(1, 1, 8, 8)
    # Columns 0.75 to 2.5, rows 0 to 0.5: pixels 0..2 of row 0.
    out = ops.roi_pool(image, torch.tensor([[0.0, 1.5, 0, 4, 0]]), 1, 0.5)
    assert out.item() == 2
    # The very first pixel can be the largest, too.
    image = (-image).requires_grad_()
    ops.roi_pool(image, torch.tensor([[0.0, 0, 0, 3, 3]]), 1, 1.0).backward()
    assert image.grad.flatten().nonzero().tolist() == [[0]]
    image.grad = None
    # A region without extent pools nothing and passes no gradient.
    none = ops.roi_pool(image, torch.tensor([[0.0, 5, 5, 2, 2]]), 2, 1.0)
    none.sum().backward()
    assert none.abs().sum() == 0
    assert image.grad.abs().sum() == 0
