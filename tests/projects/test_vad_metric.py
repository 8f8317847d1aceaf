"""VADMetric over data samples, and its detection part by hand."""

import logging

import numpy as np
import pytest
import torch
from mmdet3d.registry import METRICS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement, InstanceData

from projects.VAD.metrics import VADMetric, parts_of
from projects.VAD.metrics.detection_ap import (
    area_over_recall,
    center_distance_ap,
    center_hits,
)

DRIVE = torch.tensor([[0.0, 1.0]]).repeat(6, 1)


def boxes_at(centers):
    """Cars of 4 x 2 m facing forward, in the convention of mmdet3d 1.x."""
    boxes = torch.zeros(len(centers), 9)
    boxes[:, :2] = torch.tensor(centers).view(-1, 2)
    boxes[:, 3:6] = torch.tensor([4.0, 2.0, 1.5])
    boxes[:, 6] = np.pi / 2
    return LiDARInstance3DBoxes(boxes, box_dim=9)


def sample(centers, gt_centers, plan_shift=0.0):
    """Standing cars, one straight divider, an ego that drives 1 m a step."""
    out = Det3DDataSample()
    count, truths = len(centers), len(gt_centers)
    found = boxes_at(centers)
    out.pred_instances_3d = InstanceData(
        bboxes_3d=found,
        scores_3d=torch.linspace(0.9, 0.8, count),
        labels_3d=torch.zeros(count, dtype=torch.int64),
        trajs=found.tensor[:, None, None, :2].repeat(1, 6, 6, 1),
        traj_scores=torch.full((count, 6), 1 / 6),
    )
    attributes = torch.zeros(truths, 34)
    attributes[:, 12:18] = 1
    attributes[:, 27] = 14
    out.gt_instances_3d = InstanceData(
        bboxes_3d=boxes_at(gt_centers),
        labels_3d=torch.zeros(truths, dtype=torch.int64),
        attr_labels=attributes,
    )
    line = torch.stack((torch.zeros(20), torch.linspace(0, 20, 20)), dim=1)
    out.gt_map = InstanceData(
        labels=torch.zeros(1, dtype=torch.int64), pts=line[None]
    )
    out.pred_map = InstanceData(
        labels=torch.zeros(1, dtype=torch.int64),
        scores=torch.ones(1),
        pts=line[None] + torch.tensor([0.7, 0.0]),
    )
    plan = DRIVE.cumsum(0) + torch.tensor([plan_shift, 0.0])
    out.gt_ego = BaseDataElement(
        fut_trajs=DRIVE,
        fut_masks=torch.ones(6),
        fut_cmd=torch.tensor([0.0, 0.0, 1.0]),
    )
    wrong = torch.full((6, 2), 99.0)
    out.pred_ego = BaseDataElement(
        plans=torch.stack((wrong, wrong, plan)), command=2
    )
    return out


def evaluated(samples, **options):
    metric = METRICS.build(dict(type='VADMetric', **options))
    evaluator = Evaluator(metric)
    for one in samples:
        evaluator.process([one])
    return evaluator.evaluate(len(samples))


def test_a_perfect_frame_by_hand():
    cars = [[5.0, 10.0], [-5.0, -10.0]]
    metrics = evaluated([sample(cars, cars)])
    assert metrics['VAD/plan_L2_avg_3s'] == 0
    assert metrics['VAD/plan_L2_at_1s'] == 0
    assert metrics['VAD/plan_box_col_avg_3s'] == 0
    assert metrics['VAD/EPA_car'] == 1 and metrics['VAD/MR_car'] == 0
    assert metrics['VAD/minADE_car'] == pytest.approx(0, abs=1e-5)
    assert metrics['VAD/bev_center_ap'] == pytest.approx(1)
    # 0.7 m beside its line: a hit at 1.0 and 1.5 m, none at 0.5 m
    assert metrics['VAD/map_AP_divider'] == pytest.approx(2 / 3)
    assert metrics['VAD/map_mAP'] == pytest.approx(2 / 3)


def test_classes_without_ground_truth_do_not_pull_the_mean_down():
    metrics = evaluated([sample([[0.0, 9.0]], [[0.0, 9.0]])])
    names = [n for n in metrics if 'bev_center_ap' in n]
    assert sorted(names) == ['VAD/bev_center_ap', 'VAD/bev_center_ap_car']
    assert not any('pedestrian' in name for name in metrics)


def test_plan_and_box_meet_in_the_right_frame():
    """A car 6 m ahead, 1.5 m to the right; the plan leans into it."""
    ahead = [[3.0, 6.0]]
    hit = evaluated([sample(ahead, ahead, plan_shift=2.0)])
    assert hit['VAD/plan_L2_avg_2s'] == pytest.approx(2.0)
    assert hit['VAD/plan_box_col_at_3s'] == 1
    assert 0 < hit['VAD/plan_box_col_avg_3s'] < 1
    missed = evaluated([sample(ahead, ahead, plan_shift=-2.0)])
    assert missed['VAD/plan_box_col_avg_3s'] == 0


def test_a_slanted_box_points_where_its_yaw_says():
    """8 m long, to the front right: its rear end is at (5.2, 5.2)."""
    one = sample([], [[8.0, 8.0]], plan_shift=5.0)
    boxes = one.gt_instances_3d.bboxes_3d.tensor
    boxes[:, 3:5] = torch.tensor([8.0, 1.0])
    boxes[:, 6] = np.pi / 4
    assert evaluated([one])['VAD/plan_box_col_at_3s'] == 1
    boxes[:, 6] = -np.pi / 4
    assert evaluated([one])['VAD/plan_box_col_avg_3s'] == 0


def test_numbers_are_means_over_the_samples_that_count():
    cars = [[5.0, 10.0]]
    near, far, ended = (sample(cars, cars, shift) for shift in (1.0, 3.0, 50))
    ended.gt_ego.fut_masks = torch.tensor([1.0, 1, 1, 1, 1, 0])
    metrics = evaluated([near, far, ended], parts=['planning'])
    assert metrics['VAD/plan_L2_avg_1s'] == pytest.approx(2.0)


def test_the_flag_of_the_data_decides_where_it_is_given():
    ended = sample([], [], plan_shift=1.0)
    ended.gt_ego.fut_masks = torch.zeros(6)
    ended.gt_ego.fut_valid_flag = torch.tensor(True)
    metrics = evaluated([ended], parts=['planning'])
    assert metrics['VAD/plan_L2_avg_1s'] == pytest.approx(1.0)


@pytest.fixture
def log():
    """The messages of the current logger."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def test_what_has_no_ground_truth_is_left_out_with_one_line(log):
    plain = sample([[0.0, 9.0]], [[0.0, 9.0]])
    del plain.gt_map, plain.gt_ego
    del plain.gt_instances_3d.attr_labels
    metrics = evaluated([plain])
    assert set(metrics) == {'VAD/bev_center_ap', 'VAD/bev_center_ap_car'}
    lines = [text for text in log if 'left out' in text]
    assert lines == [
        'VADMetric: nothing to compare for planning, motion, map, nds in 1 '
        'samples; these metrics are left out.'
    ]


def test_a_plan_without_known_agents_has_no_collision():
    lonely = sample([], [])
    del lonely.gt_instances_3d
    metrics = evaluated([lonely], parts=['planning'])
    assert 'VAD/plan_L2_at_3s' in metrics
    assert not any('col' in name for name in metrics)


def test_true_lines_are_preferred_to_their_samples():
    one = sample([], [])
    found = one.pred_map.pts[0].numpy()
    truth = InstanceData(labels=one.gt_map.labels, pts=one.gt_map.pts)
    truth.lines = [found[[0, -1]]]
    one.gt_map = truth
    assert evaluated([one], parts=['map'])['VAD/map_mAP'] == 1


def test_boxes_outside_the_region_or_unsure_do_not_count():
    cars = [[0.0, 9.0], [0.0, 40.0]]
    one = sample(cars, cars[:1])
    one.pred_instances_3d.scores_3d = torch.tensor([0.3, 0.9])
    assert evaluated([one])['VAD/bev_center_ap'] == pytest.approx(1)
    one.pred_instances_3d.scores_3d = torch.tensor([0.1, 0.9])
    assert evaluated([one])['VAD/bev_center_ap'] == 0


def test_unknown_parts_are_refused():
    with pytest.raises(ValueError, match=r"parts \['fps'\], but it knows"):
        VADMetric(parts=['planning', 'fps'])
    with pytest.raises(ValueError, match=r"baseline 'idm', but it knows"):
        VADMetric(baselines=['idm'])


def test_the_names_of_vads_eval_mean_parts():
    assert parts_of('bbox') == ('planning', 'motion', 'detection', 'nds')
    assert parts_of(['chamfer', 'planning']) == ('planning', 'map')
    assert parts_of(['map']) == ('map',)
    assert VADMetric(parts='all').parts == VADMetric().parts


def test_the_mean_column_is_that_of_the_three_horizons():
    """Errors of 1, 1, 2, 2, 6, 6 m: 1, 1.5, 3 m averaged, 1, 2, 6 m at."""
    one = sample([], [])
    shift = torch.tensor([1.0, 1, 2, 2, 6, 6])
    one.pred_ego.plans[2, :, 0] += shift
    metrics = evaluated([one], parts=['planning'])
    found = [metrics[f'VAD/plan_L2_avg_{h}'] for h in ('1s', '2s', '3s')]
    assert found == pytest.approx([1, 1.5, 3])
    assert metrics['VAD/plan_L2_avg_mean'] == pytest.approx(5.5 / 3)
    found = [metrics[f'VAD/plan_L2_at_{h}'] for h in ('1s', '2s', '3s')]
    assert found == pytest.approx([1, 2, 6])
    assert metrics['VAD/plan_L2_at_mean'] == pytest.approx(3)


def test_collisions_by_hand_in_both_forms():
    """A car stands 7 m ahead; the ego should stop and drives on.

    Front of the ego at 2.54 m, rear of the car at 5 m: they touch from 3 m
    on, the third of six steps of 1 m.
    """
    one = sample([], [[0.0, 7.0]])
    one.gt_ego.fut_trajs = torch.zeros(6, 2)
    metrics = evaluated([one], parts=['planning'])
    col = [
        [metrics[f'VAD/plan_box_col_{form}_{h}'] for h in ('1s', '2s', '3s')]
        for form in ('avg', 'at')
    ]
    assert col == [[0, 2 / 4, 4 / 6], [0, 1, 1]]
    assert metrics['VAD/plan_box_col_avg_mean'] == pytest.approx(7 / 18)


def test_the_baseline_meets_the_same_cars():
    one = sample([], [[0.0, 7.0]])
    one.gt_ego.his_trajs = DRIVE[:2]
    one.gt_ego.fut_trajs = torch.zeros(6, 2)
    one.pred_ego.plans[2] = 0
    metrics = evaluated([one], parts=['planning'])
    assert metrics['VAD/plan_box_col_at_3s'] == 0
    assert metrics['VAD/constant_velocity_box_col_at_1s'] == 0
    assert metrics['VAD/constant_velocity_box_col_at_2s'] == 1
    assert not any('velocity_center' in name for name in metrics)


def test_motion_by_hand():
    """Two cars drive 1 m a step, one is missed; one ghost, one end known.

    Best mode 1: 0, 0, 0, 3, 3, 3 m off, so ADE 1.5 and FDE 3 m: a miss.
    Second car: futures known for two steps only, 0.5 m off: no end.
    """
    one = sample([[0.0, 9.0], [6.0, 0.0], [-9.0, -9.0]], [[0.0, 9.0]] * 3)
    truth, found = one.gt_instances_3d, one.pred_instances_3d
    truth.bboxes_3d.tensor[1, :2] = torch.tensor([6.0, 0.0])
    truth.bboxes_3d.tensor[2, :2] = torch.tensor([12.0, 20.0])
    truth.attr_labels[:, 1:12:2] = 1
    truth.attr_labels[1, 14:18] = 0
    steps = torch.stack((torch.zeros(6), torch.arange(1.0, 7)), dim=1)
    found.trajs = found.bboxes_3d.tensor[:, None, None, :2] + steps
    found.trajs = found.trajs.repeat(1, 6, 1, 1)
    found.trajs[0, :, :, 0] += 50
    found.trajs[0, 1, :, 0] += torch.tensor([-50.0] * 3 + [-47.0] * 3)
    found.trajs[1, :, :2, 0] += 0.5
    metrics = evaluated([one], parts=['motion'])
    assert metrics['VAD/minADE_car'] == pytest.approx((1.5 + 0.5) / 2)
    assert metrics['VAD/minFDE_car'] == pytest.approx(3)
    assert metrics['VAD/MR_car'] == 1
    # no hit, one ghost, two true cars with a whole future
    assert metrics['VAD/EPA_car'] == pytest.approx(-0.5 / 2)
    assert not any('pedestrian' in name for name in metrics)


def test_map_ap_by_hand():
    """Two dividers; found at 0.2 m (sure), 0.7 m (less sure) and nowhere.

    At 0.5 m precision 1 up to recall 1/2; at 1.0 and 1.5 m the second hit
    comes third: precision 2/3 up to recall 1.
    """
    one = sample([], [])
    line = one.gt_map.pts[0]
    at = [line + torch.tensor([x, 0.0]) for x in (0, 9, 0.2, 9.7, -8)]
    one.gt_map = InstanceData(
        labels=torch.zeros(2, dtype=torch.int64), pts=torch.stack(at[:2])
    )
    one.pred_map = InstanceData(
        labels=torch.zeros(3, dtype=torch.int64),
        scores=torch.tensor([0.9, 0.5, 0.7]),
        pts=torch.stack(at[2:]),
    )
    metrics = evaluated([one], parts='map')
    near, far = 1 / 2, 1 / 2 + 1 / 2 * 2 / 3
    assert metrics['VAD/map_mAP'] == pytest.approx((near + 2 * far) / 3)


@pytest.mark.parametrize(
    ('gap', 'hits'), [(0.4, 3), (0.9, 2), (1.4, 1), (1.6, 0)]
)
def test_a_line_is_near_at_half_one_and_one_and_a_half_metres(gap, hits):
    one = sample([], [])
    one.pred_map.pts = one.gt_map.pts + torch.tensor([gap, 0.0])
    metrics = evaluated([one], parts='map')
    assert metrics['VAD/map_mAP'] == pytest.approx(hits / 3)


def test_an_untrained_model_that_finds_nothing_divides_by_nothing():
    one = sample([], [[0.0, 9.0]])
    one.pred_map = one.pred_map[:0]
    metrics = evaluated([one])
    assert metrics['VAD/bev_center_ap'] == 0 and metrics['VAD/map_mAP'] == 0
    assert metrics['VAD/EPA_car'] == 0
    assert not any('minADE' in key or 'MR_' in key for key in metrics)
    assert np.isfinite(list(metrics.values())).all()


def test_nothing_true_leaves_only_the_plan():
    one = sample([[0.0, 9.0]], [])
    one.gt_map = one.gt_map[:0]
    metrics = evaluated([one])
    assert all('plan' in name for name in metrics)
    assert metrics['VAD/plan_box_col_avg_3s'] == 0


def with_token(one, token, timestamp):
    one.set_metainfo(dict(token=token, timestamp=timestamp))
    return one


def test_a_frame_that_comes_twice_counts_once():
    cars = [[5.0, 10.0]]
    first, second = (
        with_token(sample(cars, cars, shift), f'{shift}', time)
        for shift, time in ((1.0, 2), (3.0, 1))
    )
    again = with_token(sample(cars, cars, 50.0), '1.0', 2)
    metric = METRICS.build(dict(type='VADMetric', parts=['planning']))
    evaluator = Evaluator(metric)
    evaluator.process([first, second, again])
    metrics = evaluator.evaluate(2)
    assert metrics['VAD/plan_L2_avg_1s'] == pytest.approx(2.0)


def test_frames_that_are_missing_are_said(log):
    metric = METRICS.build(dict(type='VADMetric', parts=['planning']))
    evaluator = Evaluator(metric)
    evaluator.process([with_token(sample([], []), 'a', 1)])
    evaluator.evaluate(3)
    assert log[-1] == (
        'VADMetric: 1 different frames were evaluated, the dataset has 3.'
    )


def test_the_order_of_the_frames_does_not_change_a_tie():
    """Equal scores, one right and one wrong: who comes first matters."""
    right = with_token(sample([[0.0, 9.0]], [[0.0, 9.0]]), 'a', 1)
    wrong = with_token(sample([[0.0, 9.0]], []), 'b', 2)
    forth, back = evaluated([right, wrong]), evaluated([wrong, right])
    assert forth == back and forth['VAD/bev_center_ap'] > 0.99


def test_a_true_object_is_found_once():
    centers = np.array([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0]])
    scores = np.array([0.5, 0.9, 0.8])
    hits = center_hits(centers, scores, np.array([[0.0, 0.0]]), 0.5)
    assert hits.tolist() == [False, True, False]


def test_area_counts_from_ten_percent_on():
    assert area_over_recall(np.array([True]), np.ones(1), 1) == (
        pytest.approx(1)
    )
    # one of two found: precision 1 up to recall 0.5, which are 40 of 90
    half = area_over_recall(np.array([True]), np.ones(1), 2)
    assert half == pytest.approx(40 / 90)
    assert area_over_recall(np.zeros(0), np.zeros(0), 2) == 0


def test_the_threshold_decides_which_centre_is_near_enough():
    frame = dict(
        centers=np.array([[0.0, 1.5]]),
        scores=np.ones(1),
        labels=np.zeros(1),
        gt_centers=np.zeros((1, 2)),
        gt_labels=np.zeros(1),
    )
    found = [center_distance_ap([frame], 0, t) for t in (0.5, 1, 2, 4)]
    assert found == pytest.approx([0, 0, 1, 1])
    assert center_distance_ap([frame], 1, 2.0) is None
