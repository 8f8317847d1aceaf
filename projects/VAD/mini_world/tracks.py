"""Where objects are over time."""

from dataclasses import dataclass

import numpy as np

from projects.VAD.mini_world.traffic import STEP_SECONDS, Vehicle, Walker

FRAMES, FRAME_SECONDS = 40, 0.5
# Traffic moves before the first frame, so that nobody starts from rest, and
# a little beyond the last one.
WARM_UP, BEGIN, AFTER = -5.0, -1.5, 1.0


@dataclass
class Track:
    """Where one object is over time.

    Attributes:
        kind: Class of the object.
        size: Length, width and height in metres.
        paint: Number of its colour.
        poses: ``[n, 3]`` x, y of its middle and yaw, without jumps, ten a
            second from ``BEGIN`` on.
        speed: ``[n]`` m/s.
        parked: Whether it never moves.
    """

    kind: str
    size: tuple[float, float, float]
    paint: int
    poses: np.ndarray
    speed: np.ndarray
    parked: bool = False

    def at(self, seconds: float) -> np.ndarray:
        """Pose ``[3]`` at a time."""
        index, share = self._index(seconds)
        below, above = self.poses[index], self.poses[index + 1]
        return below + share * (above - below)

    def speed_at(self, seconds: float) -> float:
        """Speed at a time in m/s."""
        index, share = self._index(seconds)
        below, above = self.speed[index], self.speed[index + 1]
        return float(below + share * (above - below))

    def acceleration_at(self, seconds: float) -> float:
        """Change of the speed around a time in m/s2."""
        index, _ = self._index(seconds)
        change = self.speed[index + 1] - self.speed[index]
        return float(change) / STEP_SECONDS

    def _index(self, seconds: float) -> tuple[int, float]:
        place = (seconds - BEGIN) / STEP_SECONDS
        index = min(max(int(place), 0), len(self.poses) - 2)
        return index, 0.0 if self.parked else place - index


def vehicle_track(vehicle: Vehicle, driven: np.ndarray) -> Track:
    """What a vehicle does that drove so far at each step."""
    poses = vehicle.poses(driven)
    poses[:, 2] = np.unwrap(poses[:, 2])
    speed = np.gradient(driven, STEP_SECONDS)
    return Track(vehicle.kind, vehicle.size, vehicle.paint, poses, speed)


def walker_track(walker: Walker, walked: np.ndarray) -> Track:
    """What a pedestrian does that walked so far at each step."""
    poses = walker.path.poses(walked)
    speed = np.gradient(walked, STEP_SECONDS)
    return Track('pedestrian', walker.size, walker.paint, poses, speed)
