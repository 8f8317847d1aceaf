"""The earlier frames of a training sample."""

import numpy as np


def earlier_frames(idx: int, queue_length: int) -> list[int]:
    """Returns the indices of the earlier frames, newest first.

    Of the ``queue_length`` before ``idx`` one is dropped at random (numpy's
    global generator); what would be negative is 0.
    """
    window = list(range(idx - queue_length, idx))
    del window[np.random.randint(queue_length)]
    return [max(i, 0) for i in reversed(window)]


def relative_frames(frames: list[dict]) -> list[dict]:
    """Returns copies whose ``can_bus`` is relative to the frame before.

    Position (0:3) and heading (17) become differences, zero for the first
    frame; the rest stays.

    Args:
        frames: Results with an absolute ``can_bus [18]``, oldest first.
    """
    out, before = [], None
    for frame in frames:
        now = np.array(frame['can_bus'], dtype=np.float64)
        moved = now.copy()
        moved[:3] -= now[:3] if before is None else before[:3]
        moved[17] -= now[17] if before is None else before[17]
        out.append(dict(frame, can_bus=moved))
        before = now
    return out
