"""What BEV cells are told to be, and the model that learns it."""

import math

import pytest
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from projects.VAD.model.bev_hints import BEVHints

REGION = (-15.0, -30.0, -2.0, 15.0, 30.0, 2.0)
# Cells of 1.5 m: their centres are at -0.75, 0.75, 2.25, ... metres.
ROWS, COLUMNS = 40, 20


def cell(x: float, y: float) -> int:
    """Index of the cell whose centre is there."""
    return round((y + 29.25) / 1.5) * COLUMNS + round((x + 14.25) / 1.5)


def sample(boxes=(), labels=(), lines=(), kinds=()) -> Det3DDataSample:
    out = Det3DDataSample()
    tensor = torch.tensor(boxes, dtype=torch.float32).view(-1, 9)
    out.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(tensor, box_dim=9),
        labels_3d=torch.tensor(labels, dtype=torch.long),
    )
    count = len(lines[0]) if lines else 20
    points = torch.tensor(lines, dtype=torch.float32).view(-1, count, 2)
    out.gt_map = InstanceData(
        pts=points,
        labels=torch.tensor(kinds, dtype=torch.long),
    )
    return out


def box(x, y, length, width, yaw):
    return [x, y, -1.0, length, width, 1.5, yaw, 0.0, 0.0]


@pytest.fixture
def hints() -> BEVHints:
    torch.manual_seed(0)
    return BEVHints(8, (ROWS, COLUMNS), 10, 3, REGION)


def test_a_car_is_on_the_cells_within_its_footprint(hints):
    # 4 m along y and 2 m across: the four cells around the middle.
    car = sample([box(0, 0, 4.0, 2.0, math.pi / 2)], [0])
    kinds, poses, known = hints.targets(car)[:3]
    on = {cell(x, y) for x in (-0.75, 0.75) for y in (-0.75, 0.75)}
    assert set(kinds[:, 0].nonzero().flatten().tolist()) == on
    assert set(known.nonzero().flatten().tolist()) == on
    assert kinds[:, 1:].sum() == 0
    # Half a unit of 2 m would be a metre: 0.75 m is 0.375.
    expected = torch.tensor([-0.375, -0.375, 1.0, 0.0])
    torch.testing.assert_close(
        poses[cell(0.75, 0.75)], expected, atol=1e-6, rtol=0
    )


def test_turned_by_a_right_angle_it_is_on_others(hints):
    long = 6.0
    ahead = hints.targets(sample([box(0, 0, long, 1.6, math.pi / 2)], [3]))[0]
    across = hints.targets(sample([box(0, 0, long, 1.6, 0.0)], [3]))[0]
    assert ahead[cell(0.75, 2.25), 3] == 1 and across[cell(0.75, 2.25), 3] == 0
    assert ahead[cell(2.25, 0.75), 3] == 0 and across[cell(2.25, 0.75), 3] == 1


def test_what_is_smaller_than_a_cell_is_on_one(hints):
    cone = sample([box(0.9, 0.6, 0.4, 0.4, 0.3)], [9])
    kinds, _, known = hints.targets(cone)[:3]
    assert kinds[:, 9].nonzero().flatten().tolist() == [cell(0.75, 0.75)]
    assert known.sum() == 1


def test_a_line_leaves_no_cell_out(hints):
    points = [[(5.0, -9.0), (5.0, 0.0), (5.0, 9.0)]]
    kinds, _, known = hints.targets(sample(lines=points, kinds=[2]))[:3]
    column = kinds[:, 12].view(ROWS, COLUMNS).nonzero()
    assert column[:, 1].unique().tolist() == [13]
    assert column[:, 0].tolist() == list(range(14, 26))
    assert known.sum() == 0 and kinds[:, :12].sum() == 0


def test_a_cell_knows_the_way_to_the_nearest_line_of_each_class(hints):
    boundaries = [[(5.0, -9.0), (5.0, 9.0)], [(-4.0, -9.0), (-4.0, 9.0)]]
    found = hints.targets(sample(lines=boundaries, kinds=[2, 2]))
    for x, way in ((2.25, 2.75), (6.75, -1.75), (-5.25, 1.25)):
        here = cell(x, 0.75)
        assert found.near[here].tolist() == [0, 0, 1]
        torch.testing.assert_close(found.ways[here, 2, 0], torch.tensor(way))
        # Points lie at most 18 m / 8 apart.
        assert found.ways[here, 2, 1].abs() < 18 / 8 / 2 + 1e-6
    # 4.25 m away, and ahead of the end of the line.
    assert found.near[cell(0.75, 0.75)].sum() == 0
    assert found.near[cell(5.25, 12.75)].sum() == 0


def test_what_is_outside_of_the_region_is_on_no_cell(hints):
    far = sample(
        [box(40, 0, 4.0, 2.0, 0.0)], [0], [[(20.0, 0.0), (30.0, 0.0)]], [1]
    )
    kinds, _, known = hints.targets(far)[:3]
    assert kinds.sum() == 0 and known.sum() == 0


def test_a_frame_with_nothing_on_it_still_teaches_the_background(hints):
    bev = torch.randn(2, ROWS * COLUMNS, 8, requires_grad=True)
    losses = hints(bev, [sample(), sample()])
    assert losses['loss_hint_kinds'] > 0 and losses['loss_hint_poses'] == 0
    assert losses['loss_hint_ways'] == 0
    sum(losses.values()).backward()
    assert bev.grad.isfinite().all() and bev.grad.abs().sum() > 0


def test_the_hints_can_be_learnt(hints):
    frame = sample(
        [box(3.0, 8.0, 4.5, 1.9, 1.2)], [0], [[(-4, -9), (-4, 9)]], [1]
    )
    bev = torch.randn(1, ROWS * COLUMNS, 8, requires_grad=True)
    optimizer = torch.optim.Adam([bev, *hints.parameters()], lr=0.1)
    first = sum(hints(bev, [frame]).values()).item()
    for _ in range(60):
        loss = sum(hints(bev, [frame]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 10


def test_the_weight_scales_all_losses():
    frame = sample(
        [box(3.0, 8.0, 4.5, 1.9, 1.2)], [0], [[(-4, -9), (-4, 9)]], [1]
    )
    bev = torch.randn(1, ROWS * COLUMNS, 8)
    results = []
    for weight in (1.0, 3.0):
        torch.manual_seed(0)
        hints = BEVHints(8, (ROWS, COLUMNS), 10, 3, REGION, weight)
        results.append(hints(bev, [frame]))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], 3 * value)
