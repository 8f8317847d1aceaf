"""The town's ground as a picture from above: roads, paint, walkways."""

from dataclasses import dataclass

import cv2
import numpy as np
from shapely import Polygon

from projects.VAD.mini_world.town import (
    CROSSING_SPAN,
    LANE_WIDTH,
    STOP_LINE,
    Street,
    Town,
)

RESOLUTION = 0.1
SUBPIXEL_BITS = 4
# BGR.
GRASS = (70, 132, 96)
WALKWAY = (152, 158, 162)
ASPHALT = (84, 82, 80)
STRIP = (104, 100, 96)
KERB = (196, 202, 205)
WHITE = (235, 238, 240)
YELLOW = (60, 190, 235)
DASH, DASH_GAP = 3.0, 3.0


@dataclass(frozen=True)
class Ground:
    """A picture of the ground, ``[h, w, 3]`` uint8 BGR, north up.

    Attributes:
        origin: x of its left edge and y of its upper edge, metres.
    """

    image: np.ndarray
    origin: tuple[float, float]

    @property
    def to_pixels(self) -> np.ndarray:
        """Homography ``[3, 3]`` from metres to its pixels."""
        scale = 1 / RESOLUTION
        x, y = self.origin
        # The centre of the first pixel is (0, 0) in OpenCV.
        return np.array(
            [
                [scale, 0, -x * scale - 0.5],
                [0, -scale, y * scale - 0.5],
                [0, 0, 1.0],
            ]
        )

    @property
    def to_metres(self) -> np.ndarray:
        """Homography ``[3, 3]`` from its pixels to metres."""
        x, y = self.origin
        half = RESOLUTION / 2
        return np.array(
            [
                [RESOLUTION, 0, x + half],
                [0, -RESOLUTION, y - half],
                [0, 0, 1.0],
            ]
        )


def draw_ground(
    town: Town, low: np.ndarray, high: np.ndarray, rng: np.random.Generator
) -> Ground:
    """Draws a rectangle of the town.

    Args:
        town: The town.
        low: ``[2]`` south-west corner in metres.
        high: ``[2]`` north-east corner.
        rng: Source of the grain.
    """
    low, high = np.floor(low), np.ceil(high)
    width, height = np.round((high - low) / RESOLUTION).astype(int)
    image = np.full((height, width, 3), GRASS, dtype=np.uint8)
    ground = Ground(image, (float(low[0]), float(high[1])))
    for walkway in town.walkways:
        _polygon(ground, walkway, WALKWAY)
    _polygon(ground, town.drivable, ASPHALT)
    for street in town.streets:
        if street.has_parking:
            for side in (-1, 1):
                _band(ground, street, side, STRIP)
    rings = [town.drivable.exterior, *town.drivable.interiors]
    for ring in rings:
        _line(ground, np.array(ring.coords), KERB, 0.3)
    for street in town.streets:
        _paint_street(ground, street)
    for crossing in town.crossings:
        _paint_crossing(ground, crossing.outline)
    _add_grain(image, rng)
    return ground


def _add_grain(image: np.ndarray, rng: np.random.Generator) -> None:
    grain = rng.integers(-7, 8, (256, 256, 1)).astype(np.int16)
    grain = np.tile(grain, (1, image.shape[1] // 256 + 1, 1))
    grain = grain[:, : image.shape[1]]
    for top in range(0, len(image), len(grain)):
        rows = image[top : top + len(grain)]
        rows[:] = np.clip(rows + grain[: len(rows)], 0, 255)


def _paint_street(ground: Ground, street: Street) -> None:
    begin, end = STOP_LINE, street.path.length - STOP_LINE
    _line(ground, _beside(street, 0.0, begin, end), YELLOW, 0.28)
    for number in range(1, street.lanes):
        for side in (-1, 1):
            left = side * number * LANE_WIDTH
            for s in np.arange(begin, end - DASH, DASH + DASH_GAP):
                line = _beside(street, left, s, s + DASH)
                _line(ground, line, WHITE, 0.22)
    for s, side in ((begin, 1), (end, -1)):
        # Traffic keeps right: those who come to the junction stop there.
        pose = street.path.at(s)
        across = np.array([[side * 0.3], [side * street.lanes * LANE_WIDTH]])
        normal = np.array([[-np.sin(pose[2]), np.cos(pose[2])]])
        _line(ground, np.array(pose[:2]) + across * normal, WHITE, 0.4)


def _paint_crossing(ground: Ground, outline: np.ndarray) -> None:
    """White stripes along the driving direction."""
    a, b, c, d = outline
    count = int(np.linalg.norm(b - a) / 1.2)
    for i in range(count):
        near, far = (i + 0.25) / count, (i + 0.75) / count
        stripe = [
            a + (b - a) * near,
            a + (b - a) * far,
            d + (c - d) * far,
            d + (c - d) * near,
        ]
        _fill(ground, [np.array(stripe)], WHITE)


def _beside(
    street: Street, left: float, begin: float, end: float
) -> np.ndarray:
    poses = street.path.sample(1.0, begin, end)
    normal = np.stack([-np.sin(poses[:, 2]), np.cos(poses[:, 2])], 1)
    return poses[:, :2] + left * normal


def _band(ground: Ground, street: Street, side: int, colour: tuple) -> None:
    begin = CROSSING_SPAN[1] + 1.5
    end = street.path.length - begin
    inner = _beside(street, side * street.lanes * LANE_WIDTH, begin, end)
    outer = _beside(street, side * street.half_width, begin, end)
    _fill(ground, [np.concatenate([inner, outer[::-1]])], colour)


def _polygon(
    ground: Ground,
    polygon: Polygon,
    colour: tuple,
) -> None:
    rings = [polygon.exterior, *polygon.interiors]
    _fill(ground, [np.array(ring.coords) for ring in rings], colour)


def _pixels(ground: Ground, points: np.ndarray) -> np.ndarray:
    moved = np.c_[points, np.ones(len(points))] @ ground.to_pixels.T
    return np.round(moved[:, :2] * (1 << SUBPIXEL_BITS)).astype(np.int32)


def _fill(ground: Ground, rings: list[np.ndarray], colour: tuple) -> None:
    """Fills between rings by the even-odd rule."""
    pixels = [_pixels(ground, ring) for ring in rings]
    cv2.fillPoly(ground.image, pixels, colour, cv2.LINE_AA, SUBPIXEL_BITS)


def _line(
    ground: Ground, points: np.ndarray, colour: tuple, width: float
) -> None:
    thickness = max(1, round(width / RESOLUTION))
    cv2.polylines(
        ground.image,
        [_pixels(ground, points)],
        False,
        colour,
        thickness,
        cv2.LINE_AA,
        SUBPIXEL_BITS,
    )
