"""The served ops, called through mmcv's own wrappers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmcv import ops
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from torch import Tensor
from torch.autograd import gradcheck

from mmprune.compat import ops as served
from mmprune.compat.ops import rotated

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a CUDA device'
)
devices = pytest.mark.parametrize(
    'device', ['cpu', pytest.param('cuda', marks=cuda)]
)


def _random_boxes(n: int, size: float = 40.0) -> Tensor:
    corner = torch.rand(n, 2) * size
    return torch.cat([corner, corner + 3 + torch.rand(n, 2) * size / 2], 1)


# ---------------------------------------------------------------- suppression


@devices
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_nms_keeps_what_torchvision_keeps(device, dtype):
    boxes = _random_boxes(200).to(device, dtype)
    scores = torch.rand(200, device=device).to(dtype)
    dets, kept = ops.nms(boxes, scores, 0.4)
    expected = torchvision.ops.nms(boxes.float(), scores.float(), 0.4)
    assert 5 < len(expected) < 200
    assert kept.tolist() == expected.tolist()
    assert torch.equal(dets[:, 4], scores[kept])


def test_nms_offset_widens_boxes_by_a_pixel():
    boxes = torch.tensor([[0.0, 0, 9, 9], [5, 0, 14, 9]])
    scores = torch.tensor([0.9, 0.8])
    # Without: 36 / 126 = 0.286. With: 50 / 150 = 0.333.
    assert len(ops.nms(boxes, scores, 0.3, offset=0)[1]) == 2
    assert len(ops.nms(boxes, scores, 0.3, offset=1)[1]) == 1


def test_nms_of_nothing_is_nothing():
    dets, kept = ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5)
    assert kept.dtype == torch.long


def test_batched_nms_keeps_classes_apart():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    labels = torch.tensor([0, 0, 1])
    cfg = dict(type='nms', iou_threshold=0.5)
    assert ops.batched_nms(boxes, scores, labels, cfg)[1].tolist() == [0, 2]
    cfg = dict(type='soft_nms', iou_threshold=0.5, min_score=0.05)
    dets, kept = ops.batched_nms(boxes, scores, labels, cfg)
    assert kept.tolist() == [0, 2, 1]
    # IoU 0.9: 0.8 * (1 - 0.9).
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.9, 0.7, 0.08]))


@pytest.mark.parametrize(
    ('method', 'second'),
    [
        ('naive', None),
        ('linear', 0.8 * 0.5),
        ('gaussian', 0.8 * math.exp(-0.5)),
    ],
)
def test_soft_nms_decays_by_hand(method, second):
    # IoU of the first two: 50 / 100.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
    scores = torch.tensor([0.9, 0.8, 0.1])
    dets, kept = ops.soft_nms(
        boxes, scores, 0.3, sigma=0.5, min_score=0.05, method=method
    )
    if second is None:
        assert kept.tolist() == [0, 2]
    else:
        assert kept.tolist() == [0, 1, 2]
        assert dets[1, 4].item() == pytest.approx(second, rel=1e-6)
    assert torch.equal(dets[:, :4], boxes[kept])


def test_nms_match_groups_the_suppressed():
    dets = np.array(
        [[0, 0, 10, 9, 0.8], [0, 0, 10, 10, 0.9], [30, 30, 40, 40, 0.5]],
        dtype=np.float32,
    )
    groups = ops.nms_match(dets, 0.5)
    assert [g.tolist() for g in groups] == [[1, 0], [2]]


# --------------------------------------------------------------- rotated boxes


def test_rotated_iou_of_hand_made_boxes():
    square = torch.tensor([[0.0, 0, 2, 2, 0]])
    others = torch.tensor(
        [
            [0, 0, 2, 2, math.pi / 2],  # the same square
            [1, 0, 2, 2, 0],  # half of it: 2 / 6
            [0, 0, 2, 2, math.pi / 4],  # octagon 8 (sqrt 2 - 1)
            [5, 0, 2, 2, 0.3],  # apart
            [0, 0, 0, 2, 0],  # no area
        ]
    )
    octagon = 8 * (math.sqrt(2) - 1)
    expected = [1, 1 / 3, octagon / (8 - octagon), 0, 0]
    iou = ops.box_iou_rotated(square, others)[0]
    torch.testing.assert_close(iou, torch.tensor(expected))
    iof = ops.box_iou_rotated(square, others, mode='iof')[0]
    expected = [1, 0.5, octagon / 4, 0, 0]
    torch.testing.assert_close(iof, torch.tensor(expected))


@devices
@pytest.mark.parametrize('chunk', [1 << 16, 700])
def test_rotated_iou_is_shapely_s(device, chunk, monkeypatch):
    shapely = pytest.importorskip('shapely')
    monkeypatch.setattr(rotated, '_CHUNK', chunk)
    boxes = torch.rand(60, 5) * torch.tensor([20.0, 20, 9, 9, 7])
    # Far from the origin, as after the offsets of batched_nms.
    boxes[:, :2] += 1000
    boxes[1] = boxes[0]
    boxes[2] = boxes[0] + torch.tensor([1e-3, 0, 0, 0, 0])

    def polygon(box: Tensor):
        x, y, w, h, angle = box.double().tolist()
        base = shapely.box(-w / 2, -h / 2, w / 2, h / 2)
        turned = shapely.affinity.rotate(base, angle, (0, 0), True)
        return shapely.affinity.translate(turned, x, y)

    shapes = [polygon(b) for b in boxes]
    expected = torch.tensor(
        [
            [a.intersection(b).area / a.union(b).area for b in shapes]
            for a in shapes
        ]
    )
    assert (expected > 0.01).sum() > 400
    boxes = boxes.to(device)
    found = ops.box_iou_rotated(boxes, boxes).cpu()
    torch.testing.assert_close(found, expected.float(), atol=2e-5, rtol=0)
    aligned = ops.box_iou_rotated(boxes, boxes.flip(0), aligned=True)
    torch.testing.assert_close(
        aligned.cpu(), expected.flip(1).diag().float(), atol=2e-5, rtol=0
    )


def test_rotated_iou_of_upright_boxes_is_torchvision_s():
    boxes = _random_boxes(50)
    centred = torchvision.ops.box_convert(boxes, 'xyxy', 'cxcywh')
    upright = torch.cat([centred, torch.zeros(50, 1)], 1)
    torch.testing.assert_close(
        ops.box_iou_rotated(upright, upright),
        torchvision.ops.box_iou(boxes, boxes),
        atol=1e-5,
        rtol=0,
    )


def test_rotated_angle_turns_clockwise_unless_told():
    long = torch.tensor([[0.0, 0, 4, 1, 0.5]])
    other = torch.tensor([[0.0, 0, 4, 1, 0.5], [0, 0, 4, 1, -0.5]])
    # The end of the long side, at +0.5 rad: x and y both positive (y down).
    tip = torch.tensor(
        [[1.75 * math.cos(0.5), 1.75 * math.sin(0.5), 0.1, 0.1, 0]]
    )
    assert ops.box_iou_rotated(tip, long, mode='iof').item() > 0.99
    assert ops.box_iou_rotated(tip, long, mode='iof', clockwise=False) < 0.01
    assert ops.box_iou_rotated(long, other).argmax() == 0


@devices
def test_nms_rotated_is_greedy(device):
    boxes = torch.tensor(
        [
            [0.0, 0, 4, 2, 0.1],
            [0.1, 0, 4, 2, 0.1],  # nearly the first, better score
            [0.1, 0, 4, 2, 0.1 + math.pi / 2],  # crosses it: IoU 1/3
            [20, 0, 4, 2, 0.0],
        ],
        device=device,
    )
    scores = torch.tensor([0.5, 0.9, 0.7, 0.6], device=device)
    dets, kept = ops.nms_rotated(boxes, scores, 0.5)
    assert kept.tolist() == [1, 2, 3]
    assert torch.equal(dets[:, 5], scores[kept])
    assert ops.nms_rotated(boxes, scores, 0.3)[1].tolist() == [1, 3]


def test_batched_nms_takes_rotated_boxes():
    boxes = torch.tensor([[5.0, 5, 4, 2, 0.1]] * 3)
    scores = torch.tensor([0.5, 0.9, 0.7])
    labels = torch.tensor([0, 0, 1])
    cfg = dict(type='nms_rotated', iou_threshold=0.5)
    assert ops.batched_nms(boxes, scores, labels, cfg)[1].tolist() == [1, 2]


# ------------------------------------------------------------ region pooling


@devices
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_and_its_gradient_are_torchvision_s(device, aligned, ratio):
    image = torch.rand(2, 3, 16, 20, device=device, requires_grad=True)
    index = torch.tensor([[0.0], [1], [1], [0], [1]])
    rois = torch.cat([index, _random_boxes(5)], 1).to(device)
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


# --------------------------------------------------- deformable convolutions


def _deform_inputs(groups: int, deform_groups: int, device: str) -> list:
    shapes = dict(
        input=(2, 4, 7, 8),
        offset=(2, deform_groups * 2 * 6, 4, 4),
        mask=(2, deform_groups * 6, 4, 4),
        weight=(6, 4 // groups, 3, 2),
        bias=(6,),
    )
    return [
        torch.randn(s, dtype=torch.double, device=device, requires_grad=True)
        for s in shapes.values()
    ]


@devices
@pytest.mark.parametrize(('groups', 'deform_groups'), [(1, 1), (2, 2)])
def test_deform_conv_and_its_gradients(device, groups, deform_groups):
    x, offset, _, weight, _ = _deform_inputs(groups, deform_groups, device)
    settings = ((2, 2), (1, 1), (1, 2))

    def ours(x, offset, weight):
        return ops.deform_conv2d(
            x, offset, weight, *settings, groups, deform_groups
        )

    theirs = torchvision.ops.deform_conv2d(x, offset, weight, None, *settings)
    torch.testing.assert_close(ours(x, offset, weight), theirs)
    assert gradcheck(ours, (x, offset, weight), fast_mode=True)


@devices
@pytest.mark.parametrize('with_bias', [True, False])
@pytest.mark.parametrize(('groups', 'deform_groups'), [(1, 1), (2, 2)])
def test_modulated_deform_conv_and_its_gradients(
    device, groups, deform_groups, with_bias
):
    inputs = _deform_inputs(groups, deform_groups, device)
    x, offset, mask, weight, bias = inputs
    settings = ((2, 2), (1, 1), (1, 2))
    used = inputs if with_bias else inputs[:4]

    def ours(x, offset, mask, weight, bias=None):
        return ops.modulated_deform_conv2d(
            x, offset, mask, weight, bias, *settings, groups, deform_groups
        )

    theirs = torchvision.ops.deform_conv2d(
        x, offset, weight, bias if with_bias else None, *settings, mask
    )
    torch.testing.assert_close(ours(*used), theirs)
    assert gradcheck(ours, used, fast_mode=True)


def test_deform_conv_without_offsets_is_a_convolution():
    conv = ops.DeformConv2dPack(4, 6, 3, padding=1, stride=2)
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(
        conv(x), F.conv2d(x, conv.weight, stride=2, padding=1)
    )
    conv = ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1)
    # Its mask starts at sigmoid(0) = 0.5.
    torch.testing.assert_close(
        conv(x),
        F.conv2d(x, conv.weight, padding=1) / 2 + conv.bias[:, None, None],
    )


# ----------------------------------------------------- deformable attention


def _attention_inputs(device: str) -> tuple:
    shapes = torch.tensor([[6, 4], [3, 2]], device=device)
    starts = torch.tensor([0, 24], device=device)
    value = torch.rand(2, 30, 2, 4, device=device).double()
    # Some points lie outside of the map.
    location = torch.rand(2, 5, 2, 2, 3, 2, device=device).double() * 1.4 - 0.2
    weight = torch.rand(2, 5, 2, 2, 3, device=device).double()
    for tensor in (value, location, weight):
        tensor.requires_grad_()
    return value, shapes, starts, location, weight


@devices
def test_deformable_attention_is_mmcv_s_reference(device):
    value, shapes, starts, location, weight = _attention_inputs(device)

    def ours(value, location, weight):
        return MultiScaleDeformableAttnFunction.apply(
            value, shapes, starts, location, weight, 64
        )

    theirs = multi_scale_deformable_attn_pytorch(
        value, shapes, location, weight
    )
    torch.testing.assert_close(ours(value, location, weight), theirs)
    assert gradcheck(ours, (value, location, weight), fast_mode=True)


def test_deformable_attention_reads_one_pixel():
    # One head and point at the centre of pixel (row 1, column 0) of 2 x 2.
    value = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    location = torch.tensor([0.25, 0.75]).view(1, 1, 1, 1, 1, 2)
    out = MultiScaleDeformableAttnFunction.apply(
        value,
        torch.tensor([[2, 2]]),
        torch.tensor([0]),
        location,
        torch.full((1, 1, 1, 1, 1), 0.5),
        1,
    )
    assert out.flatten().tolist() == [1.5]


@cuda
def test_deformable_attention_module_runs_on_cuda_under_autocast():
    module = ops.MultiScaleDeformableAttention(
        32, 4, 1, 2, dropout=0.0, batch_first=True
    )
    query = torch.randn(1, 12, 32)
    inputs = dict(
        reference_points=torch.rand(1, 12, 1, 2),
        spatial_shapes=torch.tensor([[3, 4]]),
        level_start_index=torch.tensor([0]),
    )
    expected = module(query, **inputs)
    inputs = {k: v.cuda() for k, v in inputs.items()}
    with torch.autocast('cuda', torch.float16):
        found = module.cuda()(query.cuda(), **inputs)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-2, rtol=1e-2)


# ------------------------------------------------------------------ focal loss


@devices
def test_sigmoid_focal_loss_is_torchvision_s(device):
    logits = torch.randn(6, 4, device=device).double() * 3
    logits.requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 4, 4], device=device)
    hot = F.one_hot(target, 5)[:, :4].double()
    expected = torchvision.ops.sigmoid_focal_loss(
        logits, hot, alpha=0.3, gamma=1.5
    )

    def ours(x, reduction='none'):
        return ops.sigmoid_focal_loss(x, target, 1.5, 0.3, None, reduction)

    torch.testing.assert_close(ours(logits), expected)
    torch.testing.assert_close(ours(logits, 'mean'), expected.sum() / 6)
    torch.testing.assert_close(ours(logits, 'sum'), expected.sum())
    for reduction in ('none', 'mean', 'sum'):
        assert gradcheck(lambda x, r=reduction: ours(x, r), logits)


def test_sigmoid_focal_loss_weighs_classes_and_stays_finite():
    logits = torch.tensor([[200.0, -200], [0, 0]], requires_grad=True)
    target = torch.tensor([1, 0])
    weight = torch.tensor([3.0, 2.0])
    loss = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'none')
    # Row 1: weight 3, p 0.5: 0.25 * 0.25 * ln 2 and 0.75 * 0.25 * ln 2.
    expected = torch.tensor([0.0625, 0.1875]) * math.log(2) * 3
    torch.testing.assert_close(loss[1], expected)
    # log(0) counts as the log of the smallest float32, -87.34.
    torch.testing.assert_close(
        loss[0], torch.tensor([2 * 0.75 * 87.3365, 2 * 0.25 * 87.3365])
    )
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_softmax_focal_loss_is_its_formula():
    logits = torch.randn(5, 3).double().requires_grad_()
    target = torch.tensor([0, 1, 2, 2, 0])
    weight = torch.tensor([1.0, 2.0, 0.5]).double()
    p = logits.softmax(1)[range(5), target]
    expected = -0.25 * (1 - p) ** 2 * p.log() * weight[target]

    def ours(x, reduction='sum'):
        return ops.softmax_focal_loss(x, target, 2.0, 0.25, weight, reduction)

    torch.testing.assert_close(ours(logits, 'none'), expected)
    torch.testing.assert_close(ours(logits, 'mean'), expected.mean())
    assert gradcheck(ours, logits)


# ------------------------------------------------------------- points in boxes


@devices
def test_points_in_boxes_by_hand(device):
    boxes = torch.tensor(
        [
            [0.0, 0, 0, 4, 2, 2, math.pi / 2],  # long along y
            [0, 0, 0, 4, 2, 2, 0],  # long along x, bottom at 0
        ],
        device=device,
    )[None]
    points = torch.tensor(
        [
            [0.0, 1.5, 1],  # only the first
            [1.5, 0, 1],  # only the second
            [0, 0, 1],  # both
            [0, 0, 2.0],  # on the lid: both
            [0, 0, -0.1],  # below
            [9, 9, 1],
        ],
        device=device,
    )[None]
    part = ops.points_in_boxes_part(points, boxes)
    assert part.dtype == torch.int
    assert part.tolist() == [[0, 1, 0, 0, -1, -1]]
    every = [[[1, 0], [0, 1], [1, 1], [1, 1], [0, 0], [0, 0]]]
    assert ops.points_in_boxes_all(points, boxes).tolist() == every
    assert ops.points_in_boxes_cpu(points, boxes).tolist() == every
    assert ops.points_in_boxes_part(points, boxes[:, :0]).eq(-1).all()


def test_points_in_boxes_turns_by_plus_yaw():
    box = torch.tensor([[[0.0, 0, 0, 4, 0.5, 2, 0.6]]])
    tip = torch.tensor([[[1.8 * math.cos(0.6), 1.8 * math.sin(0.6), 1]]])
    assert ops.points_in_boxes_part(tip, box).item() == 0
    tip[..., 1] *= -1
    assert ops.points_in_boxes_part(tip, box).item() == -1


def test_mmdet3d_boxes_count_points_on_the_cpu():
    from mmdet3d.structures import LiDARInstance3DBoxes

    boxes = LiDARInstance3DBoxes(torch.tensor([[0.0, 0, 0, 2, 2, 2, 0.0]]))
    points = torch.tensor([[0.0, 0, 1], [5, 0, 1]])
    assert boxes.points_in_boxes_all(points).tolist() == [[1], [0]]
    assert boxes.points_in_boxes_part(points).tolist() == [0, -1]


def test_points_and_boxes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r'found \(1, 5, 4\)'):
        ops.points_in_boxes_all(torch.zeros(1, 5, 4), torch.zeros(1, 2, 7))


# ------------------------------------------------------------------- the table


def test_unserved_op_raises_with_its_name():
    with pytest.raises(NotImplementedError, match="'min_area_polygons'"):
        ops.min_area_polygons(torch.rand(1, 18))


def test_every_served_name_is_one_that_mmcv_asks_for():
    from pathlib import Path

    source = '\n'.join(
        p.read_text() for p in Path(ops.__file__).parent.glob('*.py')
    )
    assert [n for n in served.TABLE if f"'{n}'" not in source] == []
