"""Draws boxes on a camera's picture."""

from collections.abc import Sequence

import cv2
import numpy as np

from projects.VAD.data.keyframe_dataset import CLASSES
from projects.VAD.drawing.layers import Layer

CAMERA_WIDTH = 800
NEAR_METRES = 0.1
# A box of less height on the picture gets thin lines and no name.
TAGGED_PIXELS = 22
# Corner numbers: 0-3 bottom, 4-7 top, each front-left round to rear-left.
EDGES = [(i, (i + 1) % 4) for i in range(4)]
EDGES += [(i + 4, j + 4) for i, j in EDGES] + [(i, i + 4) for i in range(4)]
FRONT_FACE = [0, 1, 5, 4]


def draw_camera(
    picture: np.ndarray, lidar2img: np.ndarray, layers: Sequence[Layer]
) -> np.ndarray:
    """Returns a camera's picture with the boxes of all layers on it.

    Args:
        picture: ``[H, W, 3]`` uint8 BGR.
        lidar2img: ``[4, 4]`` for that size.
        layers: Drawn in order; in each the farther box is drawn first.

    Returns:
        ``[CAMERA_WIDTH * H / W, CAMERA_WIDTH, 3]`` uint8 BGR.
    """
    scale = CAMERA_WIDTH / picture.shape[1]
    height = round(picture.shape[0] * scale)
    out = cv2.resize(
        picture, (CAMERA_WIDTH, height), interpolation=cv2.INTER_AREA
    )
    matrix = np.diag([scale, scale, 1.0, 1.0]) @ lidar2img
    tags = []
    for layer in layers:
        ones = np.ones((*layer.corners.shape[:2], 1))
        projected = np.concatenate([layer.corners, ones], -1) @ matrix.T
        order = np.argsort(-projected[..., 2].mean(1))
        for i in order:
            anchor = _draw_box(out, projected[i, :, :3], layer.colour)
            if anchor is not None:
                tags.append((CLASSES[layer.labels[i]], anchor, layer.colour))
    _write_tags(out, tags)
    return out


def _draw_box(
    img: np.ndarray, corners: np.ndarray, colour: str
) -> tuple[int, int] | None:
    """Draws one box, its front face tinted.

    Args:
        img: Changed in place.
        corners: ``[8, 3]`` as (u * d, v * d, d).
        colour: As ``#rrggbb``.

    Returns:
        Where its name may stand, or None if the box is not or hardly seen.
    """
    if (corners[:, 2] < NEAR_METRES).any():
        for i, j in EDGES:
            _draw_edge(img, corners[i], corners[j], _bgr(colour), 2)
        return None
    pixels = corners[:, :2] / corners[:, 2:]
    left, top = pixels.min(0)
    right, bottom = pixels.max(0)
    height, width = img.shape[:2]
    if right < 0 or bottom < 0 or left > width or top > height:
        return None
    face = np.round(pixels[FRONT_FACE]).astype(np.int32)
    tinted = cv2.fillConvexPoly(img.copy(), face, _bgr(colour), cv2.LINE_AA)
    cv2.addWeighted(tinted, 0.3, img, 0.7, 0, dst=img)
    small = int(bottom - top < TAGGED_PIXELS)
    for i, j in EDGES:
        _draw_edge(img, corners[i], corners[j], _bgr(colour), 2 - small)
    if small:
        return None
    peak = pixels[np.argmin(pixels[:, 1])]
    x, y = np.clip(peak, (0, 16), (width - 1, height - 1))
    return int(x), int(y)


def _draw_edge(
    img: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    bgr: tuple[int, int, int],
    width: int,
) -> None:
    """Draws the part of an edge that is in front of the camera."""
    if max(start[2], end[2]) < NEAR_METRES:
        return
    ends = [start, end]
    for i, (here, there) in enumerate(((start, end), (end, start))):
        if here[2] < NEAR_METRES:
            share = (NEAR_METRES - here[2]) / (there[2] - here[2])
            ends[i] = here + share * (there - here)
    first, second = (
        tuple(int(round(value / point[2])) for value in point[:2])
        for point in ends
    )
    cv2.line(img, first, second, bgr, width, cv2.LINE_AA)


def _write_tags(
    img: np.ndarray, tags: list[tuple[str, tuple[int, int], str]]
) -> None:
    """Names of boxes, nearest first; one that would cover one is left out."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    taken = np.zeros(img.shape[:2], dtype=bool)
    for name, (x, y), colour in reversed(tags):
        width = cv2.getTextSize(name, font, size, 1)[0][0] + 6
        x = min(x, img.shape[1] - width)
        place = (slice(y - 16, y), slice(x, x + width))
        if taken[place].any():
            continue
        taken[place] = True
        img[place] = _bgr(colour)
        at = (x + 3, y - 4)
        cv2.putText(img, name, at, font, size, (0, 0, 0), 1, cv2.LINE_AA)


def _bgr(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[i : i + 2], 16) for i in (5, 3, 1))
