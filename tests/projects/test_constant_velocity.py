"""The planners that look at nothing, by hand."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement

from projects.VAD.metrics import VADMetric
from projects.VAD.metrics.constant_velocity import (
    constant_turn,
    constant_velocity,
)


def frame(history, future, plan, whole=True):
    """One frame without agents; offsets per half second."""
    wrong = torch.full((6, 2), 99.0)
    masks = torch.ones(6)
    masks[-1] = float(whole)
    return dict(
        gt_ego=BaseDataElement(
            his_trajs=torch.tensor(history),
            fut_trajs=torch.tensor(future),
            fut_masks=masks,
            fut_cmd=torch.tensor([1.0, 0.0, 0.0]),
        ),
        pred_ego=BaseDataElement(
            plans=torch.stack((torch.tensor(plan).cumsum(0), wrong, wrong))
        ),
    )


def evaluated(frames, **options):
    evaluator = Evaluator(VADMetric(parts=['planning'], **options))
    evaluator.process(frames)
    return evaluator.evaluate(len(frames))


def test_it_goes_on_as_in_the_last_half_second():
    plan = constant_velocity([[9.0, 9.0], [0.5, 2.0]])
    assert plan.tolist() == [[0.5 * k, 2.0 * k] for k in range(1, 7)]


def test_a_turn_goes_on_along_its_circle():
    """From heading +y to 10 degrees left; the circle goes on."""
    angles = np.deg2rad(90 + 10 * np.arange(8))
    steps = 3 * np.stack((np.cos(angles), np.sin(angles)), axis=1)
    plan = constant_turn(steps[:2])
    assert plan == pytest.approx(steps[2:].cumsum(axis=0))


@pytest.mark.parametrize('before', [[0.0, 0.0], [0.03, 0.0], [0.0, 1.0]])
def test_without_a_direction_it_goes_straight(before):
    history = np.array([before, [0.0, 2.0]])
    assert constant_turn(history) == pytest.approx(constant_velocity(history))


def test_the_baseline_is_scored_as_the_plan_is():
    """Truth brakes from 2 m a step to 1 m; the baseline drives on."""
    braking = [[0.0, 1.0]] * 6
    metrics = evaluated([frame([[0.0, 2.0]] * 2, braking, braking)])
    assert metrics['VAD/plan_L2_at_3s'] == 0
    assert metrics['VAD/constant_velocity_L2_at_1s'] == pytest.approx(2)
    assert metrics['VAD/constant_velocity_L2_at_3s'] == pytest.approx(6)
    assert metrics['VAD/constant_velocity_L2_avg_3s'] == pytest.approx(3.5)
    mean = (1.5 + 2.5 + 3.5) / 3
    assert metrics['VAD/constant_velocity_L2_avg_mean'] == pytest.approx(mean)
    assert not any('constant_turn' in name for name in metrics)


def test_it_counts_on_the_same_frames_as_the_plan():
    braking = [[0.0, 1.0]] * 6
    ended = frame([[0.0, 50.0]] * 2, braking, braking, whole=False)
    counted = frame([[0.0, 2.0]] * 2, braking, braking)
    assert evaluated([ended, counted]) == evaluated([counted])


def test_baselines_are_chosen_by_name():
    right = [[0.0, 1.0]] * 6
    one = frame([[0.0, 1.0]] * 2, right, right)
    both = evaluated([one], baselines=['constant_velocity', 'constant_turn'])
    assert both['VAD/constant_turn_L2_avg_3s'] == pytest.approx(0)
    none = evaluated([one], baselines=[])
    assert all(name.startswith('VAD/plan_') for name in none)


def test_without_a_history_there_is_no_baseline():
    right = [[0.0, 1.0]] * 6
    one = frame([[0.0, 1.0]] * 2, right, right)
    del one['gt_ego'].his_trajs
    assert all(name.startswith('VAD/plan_') for name in evaluated([one]))
