"""Planners that look at nothing: the baseline of every plan.

They read the ego history of the data, as ``gt_ego.his_trajs`` has it: two
offsets in metres per half second, the older one first, in the LiDAR frame.
"""

import numpy as np

NUM_STEPS = 6
MIN_STEP = 0.05


def constant_velocity(
    history: np.ndarray, num_steps: int = NUM_STEPS
) -> np.ndarray:
    """Returns the positions at the mean velocity of the last half second.

    Args:
        history: ``[2, 2]`` offsets of the last two steps.
        num_steps: Number of future steps.

    Returns:
        ``[num_steps, 2]`` in metres.
    """
    last = np.asarray(history, dtype=np.float64)[-1]
    return np.arange(1, num_steps + 1)[:, None] * last


def constant_turn(
    history: np.ndarray, num_steps: int = NUM_STEPS
) -> np.ndarray:
    """Returns the positions at constant speed and turn rate.

    Each step is as long as the last one and turned against the one before as
    the last two steps are. A step below 5 cm has no direction, then it goes
    straight on.

    Args:
        history: ``[2, 2]`` offsets of the last two steps.
        num_steps: Number of future steps.

    Returns:
        ``[num_steps, 2]`` in metres.
    """
    before, last = np.asarray(history, dtype=np.float64)
    turn = 0.0
    if min(np.hypot(*before), np.hypot(*last)) >= MIN_STEP:
        cross = before[0] * last[1] - before[1] * last[0]
        turn = np.arctan2(cross, before @ last)
    angles = turn * np.arange(1, num_steps + 1)
    cos, sin = np.cos(angles), np.sin(angles)
    steps = np.stack(
        (cos * last[0] - sin * last[1], sin * last[0] + cos * last[1]), axis=1
    )
    return steps.cumsum(axis=0)


BASELINES = dict(
    constant_velocity=constant_velocity, constant_turn=constant_turn
)
