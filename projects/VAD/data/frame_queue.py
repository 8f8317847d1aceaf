"""The earlier frames of a training sample."""

import numpy as np

# What counts from the frame before: x, y, z in metres, heading in degrees.
MOVING = [0, 1, 2, 17]


def earlier_frames(idx: int, queue_length: int) -> list[int]:
    """Returns the indices of the earlier frames, newest first.

    Of the ``queue_length`` before ``idx`` one is dropped at random (numpy's
    global generator); what would be negative is 0.
    """
    window = list(range(idx - queue_length, idx))
    del window[np.random.randint(queue_length)]
    return [max(i, 0) for i in reversed(window)]


def moved_since(can_bus: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Returns a copy of ``can_bus`` that counts from another frame's.

    Position (0:3) and heading (17) become differences; the rest stays.

    Args:
        can_bus: ``[18]``, absolute.
        before: ``[18]``, absolute; the same for a frame at rest.
    """
    out = np.array(can_bus, dtype=np.float64)
    out[MOVING] -= np.asarray(before)[MOVING]
    return out


def relative_frames(frames: list[dict]) -> list[dict]:
    """Returns copies whose ``can_bus`` is relative to the frame before.

    Args:
        frames: Results with an absolute ``can_bus [18]``, oldest first, which
            is at rest.
    """
    buses = [frame['can_bus'] for frame in frames]
    return [
        dict(frame, can_bus=moved_since(now, before))
        for frame, now, before in zip(
            frames, buses, [*buses[:1], *buses[:-1]], strict=True
        )
    ]
