"""The parts of VAD against golden unit cases, group by group.

One module: nearly all of them read the same file of cases.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from shapely import Polygon

from projects.VAD.data.map_lines import (
    boundary_lines,
    crossing_lines,
    line_targets,
    sample_line,
)
from projects.VAD.metrics.map_ap import (
    chamfer_distances,
    map_average_precision,
)
from projects.VAD.metrics.motion import (
    MIN_SCORE,
    match_objects,
    motion_counts,
    motion_summary,
)
from projects.VAD.metrics.planning import (
    box_hits,
    occupancy,
    planning_errors,
)
from projects.VAD.metrics.rasterize import fill_convex
from projects.VAD.model.box_code import decode_boxes, encode_boxes
from projects.VAD.model.plan_losses import (
    boundary_loss,
    collision_loss,
    direction_loss,
)

DIVIDER, BOUNDARY = 0, 2


@pytest.fixture(scope='module')
def units(shared):
    path = shared / 'vad' / 'golden' / 'units.npz'
    if not path.exists():
        pytest.skip(f'no {path}')
    with np.load(path) as arrays:
        return dict(arrays)


def group(units, prefix):
    """The arrays of one group without their prefix."""
    found = {
        name[len(prefix) :]: value
        for name, value in units.items()
        if name.startswith(prefix)
    }
    if not found:
        pytest.skip(f'this set has no {prefix}* arrays')
    return found


def torch_group(units, prefix):
    found = group(units, prefix)
    return {name: torch.from_numpy(value) for name, value in found.items()}


def check_plan(case, name, losses):
    elements = case[f'loss_{name}_elem']
    torch.testing.assert_close(losses, elements, rtol=1e-5, atol=2e-6)
    means = losses.flatten(1).mean(dim=1).double()
    torch.testing.assert_close(
        means, case[f'loss_{name}'], rtol=1e-5, atol=1e-6
    )


def metres(normalized):
    return normalized * torch.tensor([30.0, 60.0]) - torch.tensor([15.0, 30])


def test_plan_boundary_loss(units):
    case = torch_group(units, 'plan_')
    lines, scores = metres(case['lane']), case['lane_scores']
    losses = [
        boundary_loss(ego, line, score[..., BOUNDARY] >= 0.5) * mask
        for ego, line, score, mask in zip(
            case['ego'], lines, scores, case['mask'], strict=True
        )
    ]
    check_plan(case, 'bound', torch.stack(losses))


def test_plan_direction_loss(units):
    case = torch_group(units, 'plan_')
    lines, scores = metres(case['lane']), case['lane_scores']
    losses = [
        0.5 * direction_loss(ego, line, score[..., DIVIDER] >= 0.5) * mask
        for ego, line, score, mask in zip(
            case['ego'], lines, scores, case['mask'], strict=True
        )
    ]
    check_plan(case, 'dir', torch.stack(losses))


def test_plan_collision_loss(units):
    case = torch_group(units, 'plan_')
    best, label = case['agent_scores'].max(dim=-1)
    kept = (best >= 0.5) & (label <= 4)
    losses = [
        collision_loss(
            case['ego'][i],
            case['agent_pos'][i],
            case['agent_fut'][i],
            case['agent_modes'][i],
            kept[i],
        )
        * case['mask'][i, ..., None]
        for i in range(len(kept))
    ]
    check_plan(case, 'col', torch.stack(losses))


def ours(upstream):
    """Our name of a planning metric of the original."""
    name = upstream.replace('obj_box_col', 'box_col')
    name = name.replace('obj_col', 'center_col')
    return name[:-2] + 'avg_' + name[-2:]


def test_occupied_cells(units):
    case = group(units, 'pm_')
    for i, expected in enumerate(case['occ_sum']):
        grid = occupancy(case['gt_boxes'][i], case['gt_attr'][i])
        assert (grid.sum(axis=(1, 2)) == expected).all(), i
        if i < len(case['occ_bits']):
            bits = np.unpackbits(case['occ_bits'][i]).reshape(grid.shape)
            assert (bits == grid).all(), i


def test_planning_metric(units):
    case = group(units, 'pm_')
    compared = 0
    for i in np.flatnonzero(case['valid']):
        errors = planning_errors(
            case['pred_ego'][i],
            case['gt_ego'][i],
            occupancy(case['gt_boxes'][i], case['gt_attr'][i]),
        )
        for name, value in zip(case['names'], case['values'][i], strict=True):
            if name != 'fut_valid_flag':
                assert errors[ours(name)] == pytest.approx(value, abs=1e-5)
                compared += 1
    assert compared == 9 * case['valid'].sum()


def test_the_average_and_the_value_at_the_horizon_differ():
    plan = np.stack((np.zeros(6), np.arange(1.0, 7)), axis=1)
    truth = plan + np.array([[1, 0], [3, 0], [0, 0], [0, 0], [2, 0], [4, 0]])
    grid = np.zeros((6, 200, 200), dtype=bool)
    grid[3, 90:94, 100] = True  # 3 to 5 m ahead, at 2 s only
    errors = planning_errors(plan, truth + [20, 0], grid)
    assert errors['plan_box_col_at_2s'] == 1
    assert errors['plan_box_col_avg_2s'] == 0.25
    assert errors['plan_box_col_at_3s'] == 0
    errors = planning_errors(plan, truth)
    assert errors['plan_L2_avg_1s'] == 2 and errors['plan_L2_at_1s'] == 3
    assert errors['plan_L2_avg_2s'] == 1 and errors['plan_L2_at_2s'] == 0
    assert not any('col' in name for name in errors)


def test_a_collision_of_the_true_ego_does_not_count():
    straight = np.stack((np.zeros(6), np.arange(1.0, 7)), axis=1)
    grid = np.ones((6, 200, 200), dtype=bool)
    assert box_hits(straight, grid).all()
    errors = planning_errors(straight, straight, grid)
    assert errors['plan_box_col_avg_3s'] == 0


@pytest.mark.parametrize('offset', [(0, 0), (-6, -5), (195, 197), (999, 0)])
def test_a_polygon_is_cut_at_the_border_of_the_grid(offset):
    corners = np.array([[2, 1], [8, 3], [6, 9], [1, 6]])
    large = np.zeros((1200, 1200), np.uint8)
    fill_convex(large, corners + 10 + offset)
    grid = np.zeros((200, 200), np.uint8)
    fill_convex(grid, corners + offset)
    # OpenCV cuts the outline first, which may move a step by one cell
    whole = large[10:210, 10:210]
    assert (grid != whole).sum() <= 1 and (grid.any() == whole.any())


def test_motion_metric(units):
    truth, case = group(units, 'pm_'), group(units, 'mm_')
    total = Counter()
    for i, scores in enumerate(case['pred_scores']):
        sure = np.flatnonzero(scores > MIN_SCORE)
        boxes = case['pred_boxes'][i][sure]
        labels = case['pred_labels'][i][sure]
        gt_boxes, attr = truth['gt_boxes'][i], truth['gt_attr'][i]
        matched = match_objects(
            boxes[:, :2], labels, gt_boxes[:, :2], truth['gt_labels'][i]
        )
        expected = case['match'][i]
        assert ((matched >= 0) == (expected >= 0)).all(), i
        hits = matched >= 0
        assert (matched == expected).all() or (
            sure[matched[hits]] == expected[hits]
        ).all(), i
        trajs = case['pred_trajs'][i][sure].reshape(-1, 6, 6, 2).cumsum(2)
        counts = motion_counts(
            trajs + boxes[:, None, None, :2],
            labels,
            attr[:, :12].reshape(-1, 6, 2).cumsum(1) + gt_boxes[:, None, :2],
            attr[:, 12:18],
            truth['gt_labels'][i],
            matched,
        )
        for name, value in zip(case['names'], case['values'][i], strict=True):
            assert counts[name] == pytest.approx(value, abs=1e-4), (i, name)
        total.update(counts)
    summary = motion_summary(total)
    for name in ('car', 'pedestrian'):
        found = [
            summary[f'{key}_{name}']
            for key in ('EPA', 'minADE', 'minFDE', 'MR')
        ]
        np.testing.assert_allclose(
            found, case[f'summary_{name}'], rtol=1e-5, atol=1e-6
        )


def test_a_pair_too_far_apart_does_not_move_other_pairs():
    """Without the limit 1.9 + 2.5 m would beat 1.1 + 5.5 m."""
    gt_centers = np.array([[0.0, 0.0], [3.0, 0.0]])
    centers = np.array([[1.9, 0.0], [5.5, 0.0]])
    cars = np.zeros(2)
    matched = match_objects(centers, cars, gt_centers, cars)
    assert matched.tolist() == [-1, 0]


def test_motion_of_an_untrained_model_divides_by_nothing():
    none = np.zeros((0, 2)), np.zeros(0)
    assert match_objects(*none, np.zeros((3, 2)), np.zeros(3)).tolist() == (
        [-1, -1, -1]
    )
    counts = motion_counts(
        np.zeros((0, 6, 6, 2)),
        np.zeros(0),
        np.zeros((1, 6, 2)),
        np.ones((1, 6)),
        np.zeros(1),
        np.array([-1]),
    )
    assert motion_summary(counts) == {'EPA_car': 0.0}


def test_metrics_of_a_whole_frame(shared):
    """The metric dictionary of each golden frame, from decoded outputs."""
    folder = shared / 'vad' / 'golden'
    compared = 0
    for path in sorted(folder.glob('*_eval.npz')):
        gt_path = folder / path.name.replace('_eval', '_loss')
        if not gt_path.exists():
            continue
        with np.load(path) as arrays, np.load(gt_path) as truth:
            for t in (0, 1):
                frame = {
                    name[3:]: arrays[name]
                    for name in arrays.files
                    if name.startswith(f'f{t}_')
                }
                found = frame_metrics(frame, truth)
                for name, value in zip(
                    frame['metric_names'], frame['metric_values'], strict=True
                ):
                    if name != 'fut_valid_flag':
                        assert found[name] == pytest.approx(
                            value, rel=1e-4, abs=1e-4
                        ), (path.name, t, name)
                        compared += 1
    if not compared:
        pytest.skip(f'no pair of *_eval.npz and *_loss.npz in {folder}')


def frame_metrics(frame, truth):
    boxes, attr = truth['gt_boxes'], truth['gt_attr']
    command = truth['ego_fut_cmd'].argmax()
    errors = planning_errors(
        frame['ego_fut_preds'][0, command].cumsum(0),
        truth['ego_fut_trajs'][0].cumsum(0),
        occupancy(boxes, attr),
    )
    names = [n for n in frame['metric_names'] if n.startswith('plan_')]
    found = {name: errors[ours(name)] for name in names}
    sure = frame['dec_scores'] > MIN_SCORE
    predicted = frame['dec_boxes'][sure]
    labels = frame['dec_labels'][sure]
    trajs = frame['dec_trajs'][sure].reshape(-1, 6, 6, 2).cumsum(2)
    counts = motion_counts(
        trajs + predicted[:, None, None, :2],
        labels,
        attr[:, :12].reshape(-1, 6, 2).cumsum(1) + boxes[:, None, :2],
        attr[:, 12:18],
        truth['gt_labels'],
        match_objects(
            predicted[:, :2], labels, boxes[:, :2], truth['gt_labels']
        ),
    )
    return Counter(counts) + Counter(found) | Counter(found)


def test_box_code(units):
    case = torch_group(units, 'code_')
    code = encode_boxes(case['boxes'])
    torch.testing.assert_close(code, case['normalized'], rtol=1e-6, atol=1e-6)
    boxes = decode_boxes(case['normalized'])
    torch.testing.assert_close(
        boxes, case['denormalized'], rtol=1e-6, atol=1e-6
    )


def test_boxes_without_velocity_have_a_shorter_code():
    boxes = torch.tensor([[1.0, 2, 3, 1, 2, 1, 0.5]])
    assert encode_boxes(boxes).shape == (1, 8)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes)), boxes)


def test_chamfer_average_precision(units):
    case = group(units, 'map_')
    samples = []
    for i in range(len(case['pred_pts'])):
        parts = {}
        for label in range(3):
            mine = case['pred_labels'][i] == label
            theirs = case['gt_labels'][i] == label
            parts[label] = dict(
                distances=chamfer_distances(
                    case['pred_pts'][i][mine], case['gt_pts'][i][theirs]
                ),
                scores=case['pred_scores'][i][mine],
            )
        samples.append(parts)
    found = [
        [map_average_precision(samples, label, t) for label in range(3)]
        for t in case['thresholds']
    ]
    np.testing.assert_allclose(found, case['ap'], rtol=0, atol=1e-6)


def test_chamfer_distance_of_parallel_lines_is_their_gap():
    line = np.array([[0.0, 0.0], [0.0, 10.0]])
    distances = chamfer_distances([line], [line + [0.7, 0], line + [9, 0]])
    np.testing.assert_allclose(distances, [[0.7, np.inf]])


def split(case, name):
    ends = np.cumsum(case[f'{name}_len']).astype(int)
    return np.split(case[f'{name}_xy'], ends[:-1]) if len(ends) else []


def polygons(case, name):
    holes = split(case, f'{name}_holes')
    return [
        Polygon(ring, [h for h in holes if Polygon(ring).covers(Polygon(h))])
        for ring in split(case, name)
    ]


def assert_same_lines(found, expected):
    assert len(found) == len(expected)
    for line in expected:
        assert any(
            line.shape == other.shape and np.allclose(line, other, atol=1e-6)
            for other in found
        ), line


def test_polygons_become_polylines(units):
    case = group(units, 'poly_')
    roads, lanes = polygons(case, 'road'), polygons(case, 'lane')
    assert_same_lines(boundary_lines(roads, lanes), split(case, 'boundary'))
    crossings = crossing_lines(polygons(case, 'ped'))
    assert_same_lines(crossings, split(case, 'crossing'))


def test_no_polygon_gives_no_line():
    assert boundary_lines([], []) == [] and crossing_lines([]) == []
    far = Polygon([(100, 100), (101, 100), (101, 101)])
    assert crossing_lines([far]) == []


def test_line_targets_equal_the_original(shared):
    paths = sorted((shared / 'vad' / 'golden').glob('*_loss.npz'))
    if not paths:
        pytest.skip('this set has no *_loss.npz')
    for path in paths:
        with np.load(path) as golden:
            ends = np.cumsum(golden['map_lengths'])[:-1]
            lines = np.split(golden['map_vertices'], ends)
            targets = line_targets(lines, golden['map_labels'])
            for key, name in (
                ('bboxes', 'map_gt_bbox'),
                ('pts', 'map_gt_fixed_pts'),
                ('shift_pts', 'shift_pts_v2'),
            ):
                np.testing.assert_allclose(
                    targets[key], golden[name], rtol=0, atol=1e-5
                )


def test_a_line_is_sampled_at_equal_distances():
    corner = np.array([[0.0, 0], [3, 0], [3, 1]])
    expected = [[0, 0], [1, 0], [2, 0], [3, 0], [3, 1]]
    np.testing.assert_allclose(sample_line(corner, 5), expected)


def test_a_ring_of_many_vertices_keeps_nineteen_starts():
    angle = np.linspace(0, 2 * np.pi, 31)
    ring = 5 * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    ring[-1] = ring[0]
    shifts = line_targets([ring], [1])['shift_pts'][0]
    assert (shifts > -10000).all()
    assert len(np.unique(shifts[:, 0], axis=0)) == 19


@pytest.mark.parametrize(
    ('lines', 'labels', 'message'),
    [
        ([np.zeros((2, 2))], [], '1 map lines came with 0 labels'),
        ([np.zeros((1, 2))], [0], r'map line 0 has the shape \(1, 2\)'),
    ],
)
def test_lines_that_are_no_lines_are_refused(lines, labels, message):
    with pytest.raises(ValueError, match=message):
        line_targets(lines, labels)
