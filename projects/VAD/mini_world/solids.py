"""Coloured solids for the objects: faces of boxes within a unit box.

Every solid lies in its annotated box and touches its sides. x is the
length (front at +0.5), y the width, z the height from 0 to 1.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Length, width and height in metres.
SIZES = {
    'car': (4.5, 1.9, 1.6),
    'truck': (7.0, 2.4, 3.0),
    'construction_vehicle': (6.0, 2.6, 3.0),
    'bus': (11.0, 2.8, 3.4),
    'trailer': (9.0, 2.6, 3.4),
    'barrier': (0.5, 2.0, 1.0),
    'motorcycle': (2.1, 0.8, 1.5),
    'bicycle': (1.8, 0.6, 1.6),
    'pedestrian': (0.7, 0.7, 1.75),
    'traffic_cone': (0.4, 0.4, 0.9),
}
# BGR. Each class has its own hues, so that they can be told apart.
PAINTS = {
    'car': (
        (200, 90, 40),
        (40, 40, 200),
        (225, 225, 225),
        (200, 160, 90),
        (90, 40, 150),
        (150, 60, 60),
    ),
    'truck': ((60, 120, 40), (80, 150, 50), (50, 100, 70)),
    'bus': ((40, 215, 245),),
    'trailer': ((150, 150, 190), (170, 140, 170)),
    'construction_vehicle': ((0, 165, 255),),
    'motorcycle': ((30, 30, 120), (120, 30, 30)),
    'bicycle': ((210, 210, 40),),
    'pedestrian': (
        (180, 40, 200),
        (150, 30, 160),
        (210, 90, 230),
        (160, 60, 220),
    ),
    'traffic_cone': ((20, 95, 250),),
    'barrier': ((60, 60, 225),),
}
HOUSE_PAINTS = (
    (140, 160, 180),
    (120, 140, 165),
    (165, 175, 180),
    (110, 125, 150),
    (150, 150, 160),
)
DARK, GLASS, SKIN = (38, 38, 40), (105, 85, 60), (140, 170, 215)
LAMP, TAIL, BRAKE = (215, 250, 255), (30, 20, 110), (40, 40, 255)
WHITE = (235, 235, 235)
SUN = np.array([0.45, -0.25, 0.86])


@dataclass(frozen=True)
class Faces:
    """Quadrilaterals ``[n, 4, 3]``, colours ``[n, 3]``, normals ``[n, 3]``."""

    points: np.ndarray
    colours: np.ndarray
    normals: np.ndarray


def _block(size, bottom, colour, taper=1.0, shift=0.0, sides=range(5)):
    """Faces of a block: top, front, left, back, right."""
    unit = np.array([[1, -1], [1, 1], [-1, 1], [-1, -1]]) / 2
    low = np.c_[unit * size[:2] + (shift, 0), np.full(4, bottom)]
    high = np.c_[
        unit * size[:2] * taper + (shift, 0), np.full(4, bottom + size[2])
    ]
    quads = [high]
    normals = [(0, 0, 1), (1, 0, 0), (0, 1, 0), (-1, 0, 0), (0, -1, 0)]
    for i in range(4):
        j = (i + 1) % 4
        quads.append(np.stack([low[i], low[j], high[j], high[i]]))
    return [(quads[k], colour, normals[k]) for k in sides]


def _lamps(low, high, front, back, inner=0.25):
    """Lamps on the front and the back, flush with the box."""
    out = []
    for x, colour, normal in ((0.5, front, 1), (-0.5, back, -1)):
        for side in (-1, 1):
            a, b = side * inner, side * 0.48
            quad = [(x, a, low), (x, b, low), (x, b, high), (x, a, high)]
            out.append((np.array(quad), colour, (normal, 0, 0)))
    return out


def _car(paint, back):
    return [
        *_block((0.94, 0.9, 0.16), 0, DARK),
        *_block((1, 1, 0.42), 0.16, paint),
        *_lamps(0.36, 0.5, LAMP, back),
        *_block((0.58, 0.92, 0.34), 0.58, GLASS, 0.8, -0.06),
        *_block((0.46, 0.74, 0.08), 0.92, paint, 1.0, -0.06),
    ]


def _truck(paint, back):
    cab = 0.26
    return [
        *_block((0.96, 0.9, 0.14), 0, DARK),
        *_block((0.98 - cab, 1, 0.86), 0.14, paint, 1.0, -cab / 2 - 0.01),
        *_block((cab, 0.94, 0.4), 0.14, WHITE, 1.0, 0.5 - cab / 2),
        *_block((cab, 0.94, 0.26), 0.54, GLASS, 1.0, 0.5 - cab / 2),
        *_lamps(0.2, 0.3, LAMP, back),
    ]


def _bus(paint, back):
    return [
        *_block((0.98, 0.94, 0.1), 0, DARK),
        *_block((1, 1, 0.42), 0.1, paint),
        *_lamps(0.18, 0.28, LAMP, back),
        *_block((1, 1, 0.3), 0.52, GLASS),
        *_block((1, 1, 0.18), 0.82, paint),
    ]


def _digger(paint, back):
    return [
        *_block((0.8, 1, 0.3), 0, DARK),
        *_block((0.7, 0.9, 0.3), 0.3, paint, 1.0, -0.15),
        *_block((0.3, 0.6, 0.4), 0.6, GLASS, 1.0, 0.0),
        *_block((0.5, 0.16, 0.14), 0.5, paint, 1.0, 0.25),
    ]


def _rider(paint, back):
    return [
        *_block((1, 0.3, 0.5), 0, DARK),
        *_lamps(0.3, 0.45, LAMP, back, 0.05)[:0],
        *_block((0.4, 1.0, 0.34), 0.5, paint),
        *_block((0.16, 0.4, 0.16), 0.84, SKIN),
    ]


def _pedestrian(paint, back):
    return [
        *_block((0.55, 0.6, 0.48), 0, (95, 60, 50)),
        *_block((0.75, 1.0, 0.37), 0.48, paint),
        *_block((0.4, 0.4, 0.15), 0.85, SKIN),
    ]


def _cone(paint, back):
    return [
        *_block((1, 1, 0.06), 0, paint),
        *_block((0.8, 0.8, 0.94), 0.06, paint, 0.12),
    ]


def _barrier(paint, back):
    return [
        *_block((1, 1, 0.35), 0, paint),
        *_block((1, 1, 0.3), 0.35, WHITE),
        *_block((1, 1, 0.35), 0.65, paint),
    ]


def _trailer(paint, back):
    return [
        *_block((0.9, 0.8, 0.2), 0, DARK),
        *_block((1, 1, 0.8), 0.2, paint),
    ]


SHAPES = {
    'car': _car,
    'truck': _truck,
    'bus': _bus,
    'trailer': _trailer,
    'construction_vehicle': _digger,
    'motorcycle': _rider,
    'bicycle': _rider,
    'pedestrian': _pedestrian,
    'traffic_cone': _cone,
    'barrier': _barrier,
}


@lru_cache(maxsize=256)
def solid(kind: str, paint: int, braking: bool = False) -> Faces:
    """Returns the faces of an object in its unit box.

    Args:
        kind: Class of the object, or ``house``.
        paint: Number of its colour.
        braking: Whether its brake lights are on.
    """
    if kind == 'house':
        colour = HOUSE_PAINTS[paint % len(HOUSE_PAINTS)]
        faces = _block((1, 1, 1), 0, colour)
    else:
        colours = PAINTS[kind]
        back = BRAKE if braking else TAIL
        faces = SHAPES[kind](colours[paint % len(colours)], back)
    points, colours, normals = zip(*faces, strict=True)
    return Faces(
        np.array(points, dtype=float),
        np.array(colours, dtype=float),
        np.array(normals, dtype=float),
    )
