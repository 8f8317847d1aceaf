"""The ego vehicle's motion as a continuous function of time."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from projects.VAD.mini_world.routes import Route
from projects.VAD.mini_world.traffic import STEP_SECONDS

RATE = 100
# Length and width of the car; its frame is on the ground under the rear
# axle, the middle of its box is that far ahead.
EGO_SIZE = (4.084, 1.85, 1.6)
EGO_MIDDLE = 1.4
SMOOTHING_SECONDS = 0.2


@dataclass(frozen=True)
class Motion:
    """Samples at 100 Hz of the point under the rear axle.

    Attributes:
        times: ``[n]`` seconds from the first key frame.
        poses: ``[n, 3]`` x, y, yaw.
        speed: ``[n]`` m/s.
        acceleration: ``[n]`` along the way, m/s2.
        yaw_rate: ``[n]`` rad/s, to the left.
        curvature: ``[n]`` 1/m.
    """

    times: np.ndarray
    poses: np.ndarray
    speed: np.ndarray
    acceleration: np.ndarray
    yaw_rate: np.ndarray
    curvature: np.ndarray

    def at(self, seconds: np.ndarray | float) -> np.ndarray:
        """Poses ``[..., 3]`` at these times."""
        return np.stack(
            [np.interp(seconds, self.times, axis) for axis in self.poses.T],
            axis=-1,
        )


def ego_motion(route: Route, begin: float, driven: np.ndarray) -> Motion:
    """Returns the motion of a vehicle that drove so far along its route.

    Args:
        route: The driven line.
        begin: Time of the first entry of ``driven``.
        driven: ``[n]`` metres of the vehicle's middle, at 10 Hz.
    """
    coarse = begin + np.arange(len(driven)) * STEP_SECONDS
    times = np.arange(round((len(driven) - 1) * STEP_SECONDS * RATE) + 1)
    times = begin + times / RATE
    speed = np.gradient(driven, STEP_SECONDS)
    speed = np.interp(times, coarse, speed)
    speed = gaussian_filter1d(speed, SMOOTHING_SECONDS * RATE, mode='nearest')
    # What is left of a smoothed standstill fades to zero.
    speed = speed * speed / (speed + 0.01)
    steps = (speed[1:] + speed[:-1]) / 2 / RATE
    along = np.concatenate(([0.0], np.cumsum(steps)))
    along = along + driven[0] - EGO_MIDDLE
    curvature = np.interp(along, route.along, route.curvature)
    return Motion(
        times,
        route.pose(along),
        speed,
        np.gradient(speed, 1 / RATE),
        speed * curvature,
        curvature,
    )
