"""Plane curves made of straight lines and circular arcs.

Metres and radians, x and y of the map; a positive curvature turns left.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

Pose = tuple[float, float, float]


@dataclass(frozen=True)
class Path:
    """A smooth chain of lines and arcs.

    Attributes:
        start: x, y and heading of the first point.
        pieces: Length and curvature of each line (0) or arc.
    """

    start: Pose
    pieces: tuple[tuple[float, float], ...]

    @property
    def length(self) -> float:
        """Length in metres."""
        return sum(length for length, _ in self.pieces)

    @property
    def joints(self) -> list[Pose]:
        """The poses at which the pieces begin, and the last one."""
        poses = [self.start]
        for length, curvature in self.pieces:
            poses.append(_ahead(poses[-1], length, curvature))
        return poses

    @property
    def end(self) -> Pose:
        """Pose of the last point."""
        return self.joints[-1]

    def offset(self, left: float) -> 'Path':
        """The parallel curve ``left`` metres to the left."""
        x, y, heading = self.start
        start = (
            x - left * math.sin(heading),
            y + left * math.cos(heading),
            heading,
        )
        pieces = []
        for length, curvature in self.pieces:
            scale = 1 - curvature * left
            pieces.append((length * scale, curvature / scale))
        return Path(start, tuple(pieces))

    def reversed(self) -> 'Path':
        """The same curve from its end to its start."""
        x, y, heading = self.end
        pieces = tuple((n, -curvature) for n, curvature in self.pieces[::-1])
        return Path((x, y, heading + math.pi), pieces)

    def at(self, distance: float) -> Pose:
        """The pose after so many metres; beyond the ends goes straight on."""
        pose = self.start
        if distance < 0 or not self.pieces:
            return _ahead(pose, distance, 0.0)
        for length, curvature in self.pieces:
            if distance <= length:
                return _ahead(pose, distance, curvature)
            pose = _ahead(pose, length, curvature)
            distance -= length
        return _ahead(pose, distance, 0.0)

    def sample(
        self, step: float, begin: float = 0.0, end: float | None = None
    ) -> np.ndarray:
        """Returns poses ``[n, 3]``, both ends included.

        Args:
            step: Largest distance between two of them.
            begin: First metre.
            end: Last metre, the end of the path by default.
        """
        end = self.length if end is None else end
        count = max(2, math.ceil((end - begin) / step) + 1)
        return self.poses(np.linspace(begin, end, count))

    def poses(self, distances: np.ndarray) -> np.ndarray:
        """Poses ``[n, 3]`` after so many metres, as :meth:`at` gives."""
        pieces = ((0.0, 0.0), *self.pieces, (0.0, 0.0))
        joints = np.array([self.start, *self.joints])
        lengths, bends = np.array(pieces).T
        begins = np.concatenate(([0.0], np.cumsum(lengths)[:-1]))
        # The first entry is what lies before the path, the last one after.
        index = np.searchsorted(begins[1:], distances, side='left')
        index = np.clip(index, 0, len(pieces) - 1)
        index = np.where(np.asarray(distances) < 0, 0, np.maximum(index, 1))
        x, y, heading = joints[index].T
        rest, bend = distances - begins[index], bends[index]
        half = rest * bend / 2
        chord = rest * np.sinc(half / np.pi)
        return np.stack(
            [
                x + chord * np.cos(heading + half),
                y + chord * np.sin(heading + half),
                heading + 2 * half,
            ],
            axis=-1,
        )

    def outline(self, step: float = 3.0) -> np.ndarray:
        """Points ``[n, 2]``: only the joints of lines, arcs more densely."""
        points = [self.start[:2]]
        pose = self.start
        for length, curvature in self.pieces:
            count = max(1, math.ceil(length / step)) if curvature else 1
            for i in range(1, count + 1):
                points.append(_ahead(pose, length * i / count, curvature)[:2])
            pose = _ahead(pose, length, curvature)
        return np.array(points)


def _ahead(pose: Pose, length: float, curvature: float) -> Pose:
    x, y, heading = pose
    if abs(curvature) < 1e-9:
        return (
            x + length * math.cos(heading),
            y + length * math.sin(heading),
            heading,
        )
    turned = heading + length * curvature
    return (
        x + (math.sin(turned) - math.sin(heading)) / curvature,
        y - (math.cos(turned) - math.cos(heading)) / curvature,
        turned,
    )


def connect(begin: Pose, end: Pose) -> Path:
    """The path from one pose to another: straight on, or one quarter turn.

    Args:
        begin: First pose.
        end: Last pose; its heading is that of ``begin`` or 90 degrees to a
            side.
    """
    cos, sin = math.cos(begin[2]), math.sin(begin[2])
    dx, dy = end[0] - begin[0], end[1] - begin[1]
    ahead, left = cos * dx + sin * dy, cos * dy - sin * dx
    turn = math.remainder(end[2] - begin[2], 2 * math.pi)
    if abs(turn) < 0.1:
        return Path(begin, _shift(ahead, left))
    radius = min(ahead, abs(left))
    side = math.copysign(1.0, turn)
    pieces = [
        (ahead - radius, 0.0),
        (radius * math.pi / 2, side / radius),
        (abs(left) - radius, 0.0),
    ]
    return Path(begin, tuple(p for p in pieces if p[0] > 1e-9))


def _shift(ahead: float, left: float) -> tuple[tuple[float, float], ...]:
    """Two opposite arcs that change the lane."""
    if abs(left) < 1e-6:
        return ((ahead, 0.0),)
    angle = 2 * math.atan2(abs(left), ahead)
    radius = ahead / (2 * math.sin(angle))
    side = math.copysign(1.0, left)
    return ((radius * angle, side / radius), (radius * angle, -side / radius))


def smoothed(poses: np.ndarray, sigma: float) -> np.ndarray:
    """Returns x and y with the jumps of the curvature rounded off.

    Args:
        poses: ``[n, 2+]`` at equal distances.
        sigma: Width of the Gaussian in samples.
    """
    xy = poses[:, :2]
    pad = int(4 * sigma) + 1
    steps = np.arange(pad, 0, -1)[:, None]
    before = xy[0] - (xy[1] - xy[0]) * steps
    after = xy[-1] + (xy[-1] - xy[-2]) * steps[::-1]
    padded = np.concatenate([before, xy, after])
    return gaussian_filter1d(padded, sigma, axis=0)[pad:-pad]
