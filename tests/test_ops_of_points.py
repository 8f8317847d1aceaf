"""Served ops on points and voxels, each beside a slow reference of its own."""

import math

import numpy as np
import pytest
import torch
from mmcv import ops
from ops_inputs import devices
from torch.autograd import gradcheck


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def voxels_by_hand(points, size, area):
    """z, y, x of each point, or None outside."""
    found = []
    for point in points.tolist():
        place = [
            int((v - low) // step)
            for v, low, step in zip(point, area[:3], size, strict=False)
        ]
        count = [
            round((high - low) / step)
            for low, high, step in zip(area[:3], area[3:], size, strict=True)
        ]
        inside = all(0 <= p < n for p, n in zip(place, count, strict=True))
        found.append(tuple(place[::-1]) if inside else None)
    return found


SIZE, AREA = (0.5, 0.5, 1.0), (0.0, 0, -1, 2, 2, 1)


def test_dynamic_voxels_are_floors():
    points = torch.rand(50, 4) * 3 - torch.tensor([0.5, 0.5, 1.5, 0])
    found = ops.voxelization(points, SIZE, AREA, -1, -1)
    expected = voxels_by_hand(points, SIZE, AREA)
    assert None in expected
    assert found.tolist() == [list(v or (-1, -1, -1)) for v in expected]


def test_hard_voxels_take_the_first_points_of_the_first_voxels():
    points = torch.rand(80, 4) * 3 - torch.tensor([0.5, 0.5, 1.5, 0])
    voxels, coors, counts = ops.voxelization(points, SIZE, AREA, 2, 10)
    held = {}
    for i, place in enumerate(voxels_by_hand(points, SIZE, AREA)):
        if place in held or (place is not None and len(held) < 10):
            held.setdefault(place, []).append(i)
    assert [tuple(c) for c in coors.tolist()] == list(held)
    assert counts.tolist() == [min(len(v), 2) for v in held.values()]
    for voxel, members in zip(voxels, held.values(), strict=True):
        expected = torch.zeros(2, 4)
        expected[: len(members[:2])] = points[members[:2]]
        assert torch.equal(voxel, expected)


@pytest.mark.parametrize('kind', ['max', 'sum', 'mean'])
def test_what_is_scattered_into_voxels(kind):
    features = torch.randn(20, 3).double().requires_grad_()
    coors = torch.randint(-1, 3, (20, 3)).int()
    found, places = ops.dynamic_scatter(features, coors, kind)
    for value, place in zip(found, places, strict=True):
        members = features[(coors == place).all(1)]
        expected = members.amax(0) if kind == 'max' else members.sum(0)
        if kind == 'mean':
            expected = members.mean(0)
        torch.testing.assert_close(value, expected)
    valid = coors[(coors >= 0).all(1)].tolist()
    assert {tuple(p) for p in places.tolist()} == {tuple(p) for p in valid}
    assert gradcheck(
        lambda f: ops.dynamic_scatter(f, coors, kind)[0], features
    )


def test_one_of_equal_maxima_has_the_gradient():
    features = torch.ones(3, 1, requires_grad=True)
    coors = torch.zeros(3, 3, dtype=torch.int)
    ops.dynamic_scatter(features, coors, 'max')[0].sum().backward()
    assert features.grad.tolist() == [[1], [0], [0]]


def test_furthest_points_without_cuda():
    points = torch.rand(2, 30, 3)
    found = ops.furthest_point_sample(points, 6)
    distances = torch.cdist(points, points) ** 2
    again = ops.furthest_point_sample_with_dist(distances, 6)
    for batch in range(2):
        taken = [0]
        while len(taken) < 6:
            nearest = distances[batch][:, taken].amin(1)
            taken.append(int(nearest.argmax()))
        assert found[batch].tolist() == again[batch].tolist() == taken


def test_balls_hold_the_first_points_near_their_center():
    points, centers = torch.rand(2, 40, 3), torch.rand(2, 5, 3)
    centers[0, 0] = 9.0  # far from everything
    found = ops.ball_query(0.1, 0.4, 6, points, centers)
    sizes = set()
    for b in range(2):
        for m in range(5):
            squared = (points[b] - centers[b, m]).pow(2).sum(1)
            near = (squared >= 0.01) & (squared < 0.16)
            members = near.nonzero()[:6, 0].tolist()
            sizes.add(len(members))
            expected = members + (members[:1] or [0]) * (6 - len(members))
            assert found[b, m].tolist() == expected
    assert len(sizes) > 2


def test_nearest_points_without_cuda():
    points, centers = torch.rand(2, 20, 3), torch.rand(2, 4, 3)
    nearest = torch.cdist(centers, points).argsort(2)[..., :5]
    found = ops.knn(5, points, centers)
    assert torch.equal(found.long(), nearest.transpose(1, 2))
    turned = points.transpose(1, 2).contiguous()
    itself = ops.knn(1, turned, turned, True)
    assert itself[0, 0].tolist() == list(range(20))
    distance, three = ops.three_nn(centers, points)
    assert torch.equal(three.long(), nearest[..., :3])
    torch.testing.assert_close(
        distance, torch.cdist(centers, points).sort(2)[0][..., :3]
    )


def test_features_are_gathered_grouped_and_interpolated():
    features = torch.randn(2, 3, 7).double().requires_grad_()
    one = torch.randint(0, 7, (2, 4)).int()
    many = torch.randint(0, 7, (2, 4, 3)).int()
    weight = torch.rand(2, 4, 3).double()
    gathered = ops.gather_points(features, one)
    grouped = ops.grouping_operation(features, many)
    between = ops.three_interpolate(features, many, weight)
    for b in range(2):
        for m in range(4):
            assert torch.equal(gathered[b, :, m], features[b, :, one[b, m]])
            members = features[b][:, many[b, m].long()]
            assert torch.equal(grouped[b, :, m], members)
            torch.testing.assert_close(
                between[b, :, m], (members * weight[b, m]).sum(1)
            )
    assert gradcheck(lambda f: ops.gather_points(f, one), features)
    assert gradcheck(lambda f: ops.grouping_operation(f, many), features)
    assert gradcheck(
        lambda f: ops.three_interpolate(f, many, weight), features
    )


def test_scores_mix_the_matrices_of_neighbours():
    points = torch.randn(1, 6, 2, 3).double().requires_grad_()
    centers = torch.randn(1, 6, 2, 3).double().requires_grad_()
    scores = torch.randn(1, 4, 5, 2).double().requires_grad_()
    index = torch.randint(0, 6, (1, 4, 5))
    found = ops.assign_score_withk(scores, points, centers, index)
    for n in range(4):
        for k in range(5):
            apart = points[0, index[0, n, k]] - centers[0, index[0, n, 0]]
            expected = (scores[0, n, k, :, None] * apart).sum(0)
            torch.testing.assert_close(found[0, :, n, k], expected)
    assert gradcheck(
        lambda s, p, c: ops.assign_score_withk(s, p, c, index),
        (scores, points, centers),
    )


def held_by_hand(points, box):
    """Which points lie in a box that stands on its center, in their order."""
    x, y, z, length, width, height, yaw = box
    held = []
    for i, (px, py, pz) in enumerate(points):
        away, towards = math.hypot(px - x, py - y), math.atan2(py - y, px - x)
        along = away * math.cos(towards - yaw)
        across = away * math.sin(towards - yaw)
        near = abs(along) < length / 2 and abs(across) < width / 2
        if near and z <= pz <= z + height:
            held.append(i)
    return held


@devices
def test_a_box_pools_its_first_points_and_repeats_them_in_turn(device):
    points, features = torch.rand(2, 60, 3), torch.randn(2, 60, 4)
    boxes = torch.rand(2, 9, 7) + torch.tensor([0.0, 0, 0, 0.1, 0.1, 0.1, 0])
    boxes[..., 6] *= 6  # yaw
    boxes[0, 0, 0] = 9.0  # far from everything
    pool = ops.RoIPointPool3d(num_sampled_points=5)
    given = (x.to(device) for x in (points, features, boxes))
    found, empty = (x.cpu().numpy() for x in pool(*given))
    counts = set()
    for b in range(2):
        rows = np.concatenate([points[b].numpy(), features[b].numpy()], 1)
        for t in range(9):
            held = held_by_hand(points[b].tolist(), boxes[b, t].tolist())
            counts.add(len(held))
            expected = np.zeros((5, 7), np.float32)
            for k in range(5 if held else 0):
                expected[k] = rows[held[k % len(held[:5])]]
            np.testing.assert_array_equal(found[b, t], expected)
            assert empty[b, t] == (not held)
    # None, fewer than asked for, and more.
    assert 0 in counts and counts & {1, 2, 3, 4} and max(counts) > 5


def test_boxes_without_any_points_are_empty():
    pool = ops.RoIPointPool3d(num_sampled_points=2)
    found, empty = pool(
        torch.rand(1, 0, 3), torch.rand(1, 0, 4), torch.rand(1, 3, 7)
    )
    assert found.shape == (1, 3, 2, 7) and not found.any()
    assert empty.tolist() == [[1, 1, 1]]
