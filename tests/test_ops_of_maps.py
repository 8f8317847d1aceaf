"""Served ops on feature maps, each beside a slow reference of its own."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmcv import ops
from mmcv.ops.carafe import carafe, carafe_naive
from torch.autograd import gradcheck

from mmprune.compat.ops import carafe as served_carafe


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize('groups', [1, 2])
def test_carafe_weighs_the_neighbours_of_each_pixel(groups):
    features, masks = (
        torch.randn(2, 4, 3, 5),
        torch.randn(2, groups * 9, 6, 10),
    )
    expected = torch.zeros(2, 4, 6, 10)
    for b, c, y, x, dy, dx in torch.cartesian_prod(
        *map(torch.arange, (2, 4, 6, 10, 3, 3))
    ).tolist():
        row, column = y // 2 + dy - 1, x // 2 + dx - 1
        if 0 <= row < 3 and 0 <= column < 5:
            kernel = c // (4 // groups) * 9 + dy * 3 + dx
            value = features[b, c, row, column] * masks[b, kernel, y, x]
            expected[b, c, y, x] += value
    for op in (carafe, carafe_naive):
        found = op(features, masks, 3, groups, 2)
        torch.testing.assert_close(found, expected)


def test_carafe_has_gradients():
    features = torch.randn(1, 2, 3, 3).double().requires_grad_()
    masks = torch.randn(1, 9, 6, 6).double().requires_grad_()
    assert gradcheck(lambda f, m: carafe(f, m, 3, 1, 2), (features, masks))


def test_carafe_in_mmcv_s_module_runs():
    module = ops.CARAFEPack(8, scale_factor=2, compressed_channels=4)
    found = module(torch.randn(1, 8, 4, 4))
    assert found.shape == (1, 8, 8, 8)
    found.sum().backward()
    assert module.content_encoder.weight.grad.abs().sum() > 0
    assert served_carafe.forward is not None


def test_masked_convolution_is_a_convolution_where_the_mask_is():
    layer = ops.MaskedConv2d(3, 5, 3, padding=1)
    x, mask = torch.randn(1, 3, 6, 7), (torch.rand(1, 6, 7) > 0.5).float()
    torch.testing.assert_close(layer(x, mask), layer(x) * mask[:, None])
    assert layer(x, mask * 0).eq(0).all()


def _at(feature, y, x):
    """A value between pixels, by hand: outside beyond one pixel it is 0."""
    height, width = feature.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = feature[top, left] * (1 - across) + feature[top, right] * across
    lower = (
        feature[bottom, left] * (1 - across) + feature[bottom, right] * across
    )
    return float(upper * (1 - down) + lower * down)


@pytest.mark.parametrize('ratio', [0, 2])
def test_deformable_pooling_moves_its_bins(ratio):
    features = torch.randn(2, 2, 7, 8)
    rois = torch.tensor([[1.0, 2, 4, 21, 19], [0, 0, 0, 9, 30]])
    offset = torch.randn(2, 2, 2, 3)
    found = ops.deform_roi_pool(features, rois, offset, (2, 3), 0.25, ratio)
    for r, roi in enumerate(rois.tolist()):
        x0, y0, x1, y1 = (v * 0.25 - 0.5 for v in roi[1:])
        height, width = (y1 - y0) / 2, (x1 - x0) / 3
        rows = ratio or math.ceil(height)
        columns = ratio or math.ceil(width)
        for c, i, j in torch.cartesian_prod(
            torch.arange(2), torch.arange(2), torch.arange(3)
        ).tolist():
            dx, dy = (0.1 * offset[r, :, i, j]).tolist()
            samples = [
                _at(
                    features[int(roi[0]), c],
                    y0 + dy * (y1 - y0) + (i + (a + 0.5) / rows) * height,
                    x0 + dx * (x1 - x0) + (j + (b + 0.5) / columns) * width,
                )
                for a in range(rows)
                for b in range(columns)
            ]
            mean = sum(samples) / len(samples)
            assert found[r, c, i, j].item() == pytest.approx(mean, abs=1e-5)


def test_deformable_pooling_has_gradients_and_needs_no_offset():
    features = torch.randn(1, 2, 6, 6).double().requires_grad_()
    rois = torch.tensor([[0.0, 1, 1, 17, 21]]).double()
    offset = torch.rand(1, 2, 2, 2).double().requires_grad_()

    def pool(features, offset):
        return ops.deform_roi_pool(features, rois, offset, 2, 0.25, 2)

    assert gradcheck(pool, (features, offset))
    still = pool(features, torch.zeros_like(offset))
    torch.testing.assert_close(still, pool(features, None))
    none = ops.deform_roi_pool(features, rois[:0], None, 2, 0.25, 2)
    assert none.shape == (0, 2, 2, 2)


def test_rotated_regions_without_an_angle_are_upright():
    features = torch.randn(2, 3, 9, 9)
    rois = torch.tensor([[0.0, 16, 12, 20, 14], [1, 20, 20, 8, 30]])
    turned = torch.cat([rois, torch.zeros(2, 1)], 1)
    low = rois[:, 1:3] - rois[:, 3:] / 2
    upright = torch.cat([rois[:, :1], low, low + rois[:, 3:]], 1)
    found = ops.roi_align_rotated(features, turned, (2, 3), 0.25, 2)
    expected = ops.roi_align(features, upright, (2, 3), 0.25, 2)
    torch.testing.assert_close(found, expected)


def test_a_quarter_turn_of_a_region_turns_what_is_pooled():
    features = torch.randn(1, 2, 9, 9).double().requires_grad_()
    roi = torch.tensor([[0.0, 16, 16, 20, 12, math.pi / 2]]).double()
    swapped = torch.tensor([[0.0, 16, 16, 12, 20, 0]]).double()
    flat = ops.roi_align_rotated(features, swapped, (3, 2), 0.25, 2)
    one = ops.roi_align_rotated(features, roi, (2, 3), 0.25, 2)
    other = ops.roi_align_rotated(features, roi, (2, 3), 0.25, 2, True, True)
    torch.testing.assert_close(one, flat.rot90(-1, (2, 3)))
    torch.testing.assert_close(other, flat.rot90(1, (2, 3)))
    assert gradcheck(
        lambda f: ops.roi_align_rotated(f, roi, 2, 0.25, 2), (features,)
    )


@pytest.mark.parametrize('kind', ['collect', 'distribute'])
def test_psa_mask_puts_neighbours_at_their_place(kind):
    height, width, rows, columns = 4, 3, 3, 5
    module = ops.PSAMask(kind, (rows, columns))
    x = torch.randn(2, 15, height, width).double().requires_grad_()
    expected = torch.zeros(2, 12, height, width).double()
    for y, x0, i, j in torch.cartesian_prod(
        *map(torch.arange, (height, width, rows, columns))
    ).tolist():
        to_y, to_x = y + i - 1, x0 + j - 2
        if 0 <= to_y < height and 0 <= to_x < width:
            value = x[:, i * columns + j, y, x0].detach()
            if kind == 'collect':
                expected[:, to_y * width + to_x, y, x0] = value
            else:
                expected[:, y * width + x0, to_y, to_x] = value
    assert torch.equal(module(x), expected)
    assert gradcheck(module, (x,))


def test_points_in_polygons_by_hand():
    square = [0.0, 0, 4, 0, 4, 4, 0, 4]
    diamond = [2.0, -1, 5, 2, 2, 5, -1, 2]
    points = torch.tensor([[2.0, 2], [4.5, 2], [3.9, 3.9], [9, 2], [1, 1]])
    found = ops.points_in_polygons(points, torch.tensor([square, diamond]))
    assert found.tolist() == [[1, 1], [0, 1], [1, 0], [0, 0], [1, 1]]


def test_offsets_of_a_larger_map_are_read_as_mmcv_s_kernels_read_them():
    """DyHead gives a convolution the offsets of the level below."""
    layer = ops.ModulatedDeformConv2d(2, 3, 3, padding=1)
    x = torch.randn(2, 2, 4, 4)
    offset, mask = torch.randn(2, 18, 8, 8), torch.rand(2, 9, 8, 8)
    found = layer(x, offset, mask)
    first = offset.flatten(1)[:, : 18 * 16].view(2, 18, 4, 4)
    weights = mask.flatten(1)[:, : 9 * 16].view(2, 9, 4, 4)
    torch.testing.assert_close(found, layer(x, first, weights))
    assert not torch.allclose(found, F.conv2d(x, layer.weight, padding=1))


def test_an_offset_that_is_no_number_reads_nothing():
    """As in mmcv's kernels; torchvision's would read any memory."""
    layer = ops.DeformConv2d(2, 3, 3, padding=1)
    x, offset = torch.randn(1, 2, 4, 4), torch.zeros(1, 18, 4, 4)
    for nothing in (float('nan'), float('inf'), -float('inf')):
        offset[0, :2] = nothing  # of the first of nine taps
        kernel = layer.weight.detach().clone()
        kernel[:, :, 0, 0] = 0
        torch.testing.assert_close(
            layer(x, offset), F.conv2d(x, kernel, padding=1)
        )
