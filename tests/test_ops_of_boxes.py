"""Served ops on boxes, called through mmcv's own wrappers."""

import math

import numpy as np
import pytest
import torch
import torchvision
from mmcv import ops
from ops_inputs import devices, random_boxes
from torch import Tensor

from mmprune.compat.ops import rotated

# ---------------------------------------------------------------- suppression


@devices
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_nms_keeps_what_torchvision_keeps(device, dtype):
    boxes = random_boxes(200).to(device, dtype)
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
    boxes = random_boxes(50)
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
