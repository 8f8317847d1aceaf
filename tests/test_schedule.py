"""Schedules: values at begin, middle, end and outside."""

import pytest

from mmprune.registry import TASK_UTILS
from mmprune.schedule import (
    CompoundSchedule,
    CubicSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneShot,
    build_schedules,
    sparsity_at,
)

STEPS = (0, 10, 15, 20, 99)


@pytest.mark.parametrize(
    ('schedule', 'values'),
    [
        (OneShot(15, 0.8), (0, 0, 0.8, 0.8, 0.8)),
        (LinearSchedule(10, 20, 0.8), (0, 0, 0.4, 0.8, 0.8)),
        (LinearSchedule(10, 20, 0.8, 0.2), (0.2, 0.2, 0.5, 0.8, 0.8)),
        # 0.8 - 0.8 / 2 ** 3
        (CubicSchedule(10, 20, 0.8), (0, 0, 0.7, 0.8, 0.8)),
        # 0.9 - 0.8 / 2 ** 3
        (CubicSchedule(10, 20, 0.9, 0.1), (0.1, 0.1, 0.8, 0.9, 0.9)),
        # A quarter is left: half of it goes in each half.
        (ExponentialSchedule(10, 20, 0.75), (0, 0, 0.5, 0.75, 0.75)),
        # From 0.8 over 0.4 to 0.2.
        (ExponentialSchedule(10, 20, 0.8, 0.2), (0.2, 0.2, 0.6, 0.8, 0.8)),
    ],
)
def test_values(schedule, values):
    assert [schedule(step) for step in STEPS] == pytest.approx(values)


def test_the_same_fraction_of_the_rest_goes_at_every_step():
    schedule = ExponentialSchedule(0, 8, 0.9)
    kept = [1 - schedule(step) for step in range(9)]
    ratios = [b / a for a, b in zip(kept, kept[1:], strict=False)]
    assert ratios == pytest.approx([0.1 ** (1 / 8)] * 8)


def test_a_config_names_them():
    config = dict(type='mmprune.CubicSchedule', begin=1, end=5, final=0.5)
    assert TASK_UTILS.build(config) == CubicSchedule(1, 5, 0.5)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: CubicSchedule(5, 5, 0.5), 'begin=5 and end=5'),
        (lambda: LinearSchedule(-1, 5, 0.5), 'begins at step 0 or later'),
        (lambda: LinearSchedule(0, 5, 1.0), 'final < 1'),
        (lambda: OneShot(0, 0.3, 0.4), 'initial=0.4 and final=0.3'),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_geometric_schedule_of_the_guide():
    table = (
        '.077 .148 .214 .275 .331 .382 .430 .474 .514 .552 .586 .618 .648 '
        '.675 .700'
    )
    schedule = ExponentialSchedule(0, 15, 0.7)
    found = [schedule(k) for k in range(1, 16)]
    assert [f'{s:.3f}'[1:] for s in found] == table.split()
    assert found[-1] == 0.7  # the power alone would round


@pytest.mark.parametrize(
    ('schedule', 'expected'),
    [
        # events 0, 1, 2, 3, 4 of 4
        (
            ExponentialSchedule(0, 4, 0.5),
            [0, 1 - 0.5**0.25, 1 - 0.5**0.5, 1 - 0.5**0.75, 0.5],
        ),
        (OneShot(1, 0.5), [0, 0.5, 0.5, 0.5, 0.5]),
        (CompoundSchedule(0, 4, 0.5), [0, 0.5, 0.75, 0.875, 0.9375]),
        (LinearSchedule(0, 4, 0.5), [0, 0.125, 0.25, 0.375, 0.5]),
        (CubicSchedule(0, 4, 0.5), [0, 0.2890625, 0.4375, 0.4921875, 0.5]),
    ],
)
def test_a_schedule_follows_its_formula_at_five_points(schedule, expected):
    found = [schedule(k) for k in range(5)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_granularities_have_schedules_of_their_own():
    config = dict(type='mmprune.LinearSchedule', begin=0, end=4)
    both = build_schedules(config, dict(head=0.4, neuron=0.8))
    assert sparsity_at(both, 2) == dict(head=0.2, neuron=0.4)
    assert sparsity_at(build_schedules(config, 0.4), 2) == 0.2
    config['final'] = dict(head=0.4)
    assert sparsity_at(build_schedules(config, None), 4) == dict(head=0.4)
