"""Schedules: values at begin, middle, end and outside."""

import pytest

from mmprune.registry import TASK_UTILS
from mmprune.schedule import (
    CubicSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneShot,
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
