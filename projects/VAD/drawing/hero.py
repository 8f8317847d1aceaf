"""Draws models side by side, small enough for the head of a README.

A column per model: the front camera with boxes, map lines and plan on it, and
the same from above, forward to the right. Lines are thick, words few: all can
be told apart at a width of 400 pixels.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from projects.VAD.data.keyframe_dataset import CAMERAS
from projects.VAD.drawing.camera_view import EDGES
from projects.VAD.drawing.keyframe import (
    EGO_COLOUR,
    EGO_FORWARD,
    EGO_LENGTH,
    EGO_WIDTH,
    MAP_COLOURS,
    PLAN_COLOUR,
    REGION,
)
from projects.VAD.drawing.layers import PREDICTION_COLOUR, Layer

COLUMN, GAP, BAR = 720, 16, 64
FONT_PIXELS = 36
PAPER, TRUTH, INK = '#f3f4f6', '#c3c8ce', '#20242c'
# The LiDAR's height above the road, metres: lines and plan lie on the road.
GROUND = -1.84
NEAR_METRES = 0.5
STEP_METRES = 0.25
LEGEND = (
    ('object', PREDICTION_COLOUR),
    ('plan', PLAN_COLOUR),
    *(
        (word, MAP_COLOURS[name])
        for word, name in (
            ('divider', 'divider'),
            ('crossing', 'ped_crossing'),
            ('kerb', 'boundary'),
        )
    ),
    ('truth', TRUTH),
)


def draw_side_by_side(
    results: dict,
    truth: Layer | None,
    models: Sequence[tuple[str, Layer]],
    camera: str = 'CAM_FRONT',
) -> np.ndarray:
    """Returns the picture, ``[H, W, 3]`` uint8 RGB.

    Args:
        results: What ``NuScenesKeyframeDataset.get_data_info`` gives.
        truth: Its boxes are shown in grey from above.
        models: Title and prediction of each column.
        camera: Which camera is shown.

    Raises:
        ValueError: If the picture of the camera cannot be decoded.
    """
    path = results['images'][camera]['img_path']
    picture = cv2.imread(path)
    if picture is None:
        raise ValueError(
            f'picture {path} of {camera} cannot be decoded; copy it again.'
        )
    matrix = results['lidar2img'][CAMERAS.index(camera)]
    columns = []
    for title, layer in models:
        parts = [
            _title(title),
            _camera(picture, matrix, layer),
            np.full((GAP // 2, COLUMN, 3), 255, np.uint8),
            _from_above(layer, truth),
        ]
        columns.append(np.concatenate(parts))
    gap = np.full((len(columns[0]), GAP, 3), 255, np.uint8)
    row = [columns[0]]
    for column in columns[1:]:
        row += [gap, column]
    row = np.concatenate(row, axis=1)
    return np.concatenate([row[..., ::-1], _legend(row.shape[1])])


def _camera(
    picture: np.ndarray, matrix: np.ndarray, layer: Layer
) -> np.ndarray:
    scale = COLUMN / picture.shape[1]
    size = (COLUMN, round(picture.shape[0] * scale))
    out = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    matrix = np.diag([scale, scale, 1.0, 1.0]) @ matrix
    for name, line in layer.lines:
        _polyline(out, _on_road(line, matrix), MAP_COLOURS[name], 5)
    _plan_on_road(out, matrix, layer)
    centres = layer.corners.mean(1)
    for i in np.argsort(-np.linalg.norm(centres[:, :2], axis=1)):
        ones = np.ones((8, 1))
        corners = np.c_[layer.corners[i], ones] @ matrix.T
        if (corners[:, 2] < NEAR_METRES).any():
            continue
        pixels = corners[:, :2] / corners[:, 2:3]
        for a, b in EDGES:
            _polyline(out, [pixels[[a, b]]], PREDICTION_COLOUR, 3)
    return out


def _plan_on_road(out: np.ndarray, matrix: np.ndarray, layer: Layer) -> None:
    """A strip as wide as the car, half transparent."""
    plan = layer.plans.get(layer.command)
    if plan is None or np.ptp(plan, axis=0).max() < 0.5:
        return
    way = _dense(plan)
    ahead = np.gradient(way, axis=0)
    ahead /= np.maximum(np.linalg.norm(ahead, axis=1, keepdims=True), 1e-6)
    aside = np.c_[-ahead[:, 1], ahead[:, 0]] * EGO_WIDTH / 2
    edges = [_project(way + side * aside, matrix) for side in (1, -1)]
    seen = (edges[0][:, 2] > NEAR_METRES) & (edges[1][:, 2] > NEAR_METRES)
    if seen.sum() < 2:
        return
    left, right = (e[seen, :2] / e[seen, 2:3] for e in edges)
    strip = np.concatenate([left, right[::-1]])
    strip = np.clip(strip, -4000, 4000).round().astype(np.int32)
    tinted = cv2.fillPoly(out.copy(), [strip], _bgr(PLAN_COLOUR), cv2.LINE_AA)
    cv2.addWeighted(tinted, 0.55, out, 0.45, 0, dst=out)
    for edge in (left, right):
        _polyline(out, [edge], PLAN_COLOUR, 3)


def _from_above(layer: Layer, truth: Layer | None) -> np.ndarray:
    """The region in the LiDAR's frame, forward to the right."""
    x0, x1, y0, y1 = REGION
    scale = COLUMN / (y1 - y0)
    out = np.empty((round((x1 - x0) * scale), COLUMN, 3), np.uint8)
    out[:] = _bgr(PAPER)

    def pixels(points: np.ndarray) -> np.ndarray:
        return (points[:, ::-1] - (y0, x0)) * scale

    if truth is not None:
        for corners in truth.corners:
            shape = pixels(corners[:4, :2]).round().astype(np.int32)
            cv2.fillPoly(out, [shape], _bgr(TRUTH), cv2.LINE_AA)
    for name, line in layer.lines:
        _polyline(out, [pixels(line)], MAP_COLOURS[name], 5)
    plan = layer.plans.get(layer.command)
    if plan is not None:
        _polyline(out, [pixels(plan)], PLAN_COLOUR, 9)
    for corners in layer.corners:
        ring = corners[[0, 1, 2, 3, 0], :2]
        _polyline(out, [pixels(ring)], PREDICTION_COLOUR, 4)
        nose = np.stack([corners[:4, :2].mean(0), corners[:2, :2].mean(0)])
        _polyline(out, [pixels(nose)], PREDICTION_COLOUR, 4)
    half = np.array([EGO_WIDTH, EGO_LENGTH]) / 2
    ego = np.array([[-1, -1], [-1, 0.4], [0, 1], [1, 0.4], [1, -1]]) * half
    shape = pixels(ego + (0, EGO_FORWARD)).round().astype(np.int32)
    cv2.fillPoly(out, [shape], _bgr(EGO_COLOUR), cv2.LINE_AA)
    return out


def _on_road(line: np.ndarray, matrix: np.ndarray) -> list[np.ndarray]:
    """The parts of a line that are in front of the camera, in pixels."""
    points = _project(_dense(line), matrix)
    seen = points[:, 2] > NEAR_METRES
    breaks = np.flatnonzero(np.diff(seen)) + 1
    return [
        part[:, :2] / part[:, 2:3]
        for part in np.split(points, breaks)
        if part[0, 2] > NEAR_METRES and len(part) > 1
    ]


def _project(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``[n, 3]`` (u d, v d, d) of points ``[n, 2]`` on the road."""
    full = np.c_[points, np.full(len(points), GROUND), np.ones(len(points))]
    return (full @ matrix.T)[:, :3]


def _dense(line: np.ndarray) -> np.ndarray:
    """The same line with a point every few decimetres."""
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    along = np.r_[0.0, steps.cumsum()]
    if along[-1] < STEP_METRES:
        return line
    at = np.linspace(0, along[-1], int(along[-1] / STEP_METRES) + 2)
    return np.stack([np.interp(at, along, axis) for axis in line.T], 1)


def _polyline(
    out: np.ndarray, parts: Sequence[np.ndarray], colour: str, width: int
) -> None:
    whole = [
        np.clip(part, -4000, 4000).round().astype(np.int32) for part in parts
    ]
    cv2.polylines(out, whole, False, _bgr(colour), width, cv2.LINE_AA)


def _title(text: str) -> np.ndarray:
    image = Image.new('RGB', (COLUMN, BAR), 'white')
    draw = ImageDraw.Draw(image)
    middle = (COLUMN / 2, BAR / 2)
    draw.text(middle, text, INK, _font('bold'), anchor='mm')
    return np.asarray(image)[..., ::-1]


def _legend(width: int) -> np.ndarray:
    """One line of words, each behind a patch of its colour, RGB.

    Made for two columns; for another number all of it grows or shrinks.
    """
    size = (2 * COLUMN + GAP, BAR)
    image = Image.new('RGB', size, 'white')
    draw, font = ImageDraw.Draw(image), _font('normal')
    patch, space = FONT_PIXELS * 0.8, FONT_PIXELS * 0.4
    lengths = [patch + space + draw.textlength(w, font) for w, _ in LEGEND]
    between = (size[0] - sum(lengths)) / (len(LEGEND) + 1)
    x = between
    for (word, colour), length in zip(LEGEND, lengths, strict=True):
        top = (BAR - patch) / 2
        draw.rectangle((x, top, x + patch, top + patch), colour)
        draw.text((x + patch + space, BAR / 2), word, INK, font, anchor='lm')
        x += length + between
    height = round(BAR * width / size[0])
    return np.asarray(image.resize((width, height), Image.LANCZOS))


def _font(weight: str) -> ImageFont.FreeTypeFont:
    properties = font_manager.FontProperties(
        family='DejaVu Sans', weight=weight
    )
    return ImageFont.truetype(font_manager.findfont(properties), FONT_PIXELS)


def _bgr(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[i : i + 2], 16) for i in (5, 3, 1))
