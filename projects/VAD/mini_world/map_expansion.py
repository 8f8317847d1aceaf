"""The town in the format of nuScenes' map expansion, version 1.3."""

import math
from collections.abc import Callable

import cv2
import numpy as np
from shapely import Polygon

from projects.VAD.mini_world.paths import Path
from projects.VAD.mini_world.town import (
    LANE_WIDTH,
    STOP_LINE,
    Street,
    Town,
    rounded,
)

VERSION = '1.3'
# Arc-line paths give each piece a radius; this one stands for straight.
STRAIGHT = 1000.0
MASK_RESOLUTION = 0.1
SUBPIXEL_BITS = 4


class MapWriter:
    """Collects nodes, lines, polygons and the layers made of them.

    Args:
        token: Gives the token of a name.
    """

    def __init__(self, token: Callable[[str], str]) -> None:
        self.token = token
        self.layers: dict[str, list[dict]] = {
            name: []
            for name in (
                *('polygon', 'line', 'node', 'drivable_area'),
                *('road_segment', 'road_block', 'lane', 'ped_crossing'),
                *('walkway', 'stop_line', 'carpark_area', 'road_divider'),
                *('lane_divider', 'traffic_light', 'lane_connector'),
            )
        }
        self._nodes: dict[tuple[float, float], str] = {}

    def add(self, layer: str, **fields: object) -> str:
        """Adds a record to a layer and returns its token."""
        token = self.token(f'{layer}-{len(self.layers[layer])}')
        self.layers[layer].append({'token': token, **fields})
        return token

    def nodes(self, points: np.ndarray) -> list[str]:
        """Tokens of the nodes at these points; equal points share one."""
        tokens = []
        for x, y in rounded(points).tolist():
            if (x, y) not in self._nodes:
                self._nodes[x, y] = self.add('node', x=x, y=y)
            tokens.append(self._nodes[x, y])
        return tokens

    def line(self, points: np.ndarray) -> str:
        """Adds a line and returns its token."""
        return self.add('line', node_tokens=self.nodes(points))

    def polygon(self, points: np.ndarray, holes: list = ()) -> str:
        """Adds a polygon (not closed) and returns its token."""
        return self.add(
            'polygon',
            exterior_node_tokens=self.nodes(points),
            holes=[{'node_tokens': self.nodes(hole)} for hole in holes],
        )

    def shape(self, polygon: Polygon) -> str:
        """Adds a shapely polygon and returns its token."""
        holes = [np.array(r.coords)[:-1] for r in polygon.interiors]
        return self.polygon(np.array(polygon.exterior.coords)[:-1], holes)


def map_expansion(town: Town, token: Callable[[str], str]) -> dict:
    """Returns the content of ``maps/expansion/NAME.json``.

    Args:
        town: The town.
        token: Gives the token of a name.
    """
    out = MapWriter(token)
    _add_areas(out, town)
    lanes, ways = _add_lanes(out, town)
    paths = zip(lanes + ways, town.lanes + town.connectors, strict=True)
    return {
        'version': VERSION,
        'canvas_edge': list(town.size),
        **out.layers,
        'arcline_path_3': {t: arcline_path(item.path) for t, item in paths},
        'connectivity': _connectivity(town, lanes, ways),
    }


def _add_areas(out: MapWriter, town: Town) -> None:
    """Everything but the lanes."""
    area = out.add('drivable_area', polygon_tokens=[out.shape(town.drivable)])
    outlines = [s.outline for s in town.streets] + town.junction_outlines
    segments = [
        out.add(
            'road_segment',
            polygon_token=out.polygon(outline),
            is_intersection=i >= len(town.streets),
            drivable_area_token=area,
        )
        for i, outline in enumerate(outlines)
    ]
    blocks = {}
    for i, street in enumerate(town.streets):
        for forward in (True, False):
            blocks[i, forward] = _add_block(out, street, forward, segments[i])
        _add_dividers(out, street, segments[i])
        _add_strips(out, street, i, blocks)
    crossings = [
        out.add(
            'ped_crossing',
            polygon_token=out.polygon(crossing.outline),
            road_segment_token=segments[crossing.street],
        )
        for crossing in town.crossings
    ]
    for i in range(len(town.streets)):
        _add_stop_lines(out, town, i, blocks, crossings)
    for walkway in town.walkways:
        out.add('walkway', polygon_token=out.shape(walkway))


def arcline_path(path: Path) -> list[dict]:
    """Returns a path as nuScenes' arc-line records, one per piece."""
    records = []
    joints = path.joints
    for i, (length, curvature) in enumerate(path.pieces):
        straight = abs(curvature) < 1e-9
        first = [0.0, length, 0.0] if straight else [length, 0.0, 0.0]
        records.append(
            {
                'start_pose': _wrapped(joints[i]),
                'end_pose': _wrapped(joints[i + 1]),
                'shape': 'RSR' if curvature < 0 else 'LSL',
                'radius': STRAIGHT if straight else 1 / abs(curvature),
                'segment_length': first,
            }
        )
    return records


def _wrapped(pose: tuple[float, float, float]) -> list[float]:
    x, y, heading = pose
    return [x, y, math.remainder(heading, 2 * math.pi)]


def _add_block(
    out: MapWriter, street: Street, forward: bool, segment: str
) -> str:
    """All lanes of one direction."""
    path = street.path if forward else street.path.reversed()
    left = path.outline()
    right = path.offset(-street.lanes * LANE_WIDTH).outline()
    return out.add(
        'road_block',
        polygon_token=out.polygon(np.concatenate([right, left[::-1]])),
        from_edge_line_token=out.line(np.stack([left[0], right[0]])),
        to_edge_line_token=out.line(np.stack([left[-1], right[-1]])),
        road_segment_token=segment,
    )


def _part(street: Street, left: float) -> np.ndarray:
    """The line beside the middle between the stop lines, ``[n, 2]``."""
    end = street.path.length - STOP_LINE
    poses = street.path.sample(2.0, STOP_LINE, end)
    normal = np.stack([-np.sin(poses[:, 2]), np.cos(poses[:, 2])], 1)
    return poses[:, :2] + left * normal


def _add_dividers(out: MapWriter, street: Street, segment: str) -> None:
    line = out.line(_part(street, 0.0))
    out.add('road_divider', line_token=line, road_segment_token=segment)
    for number in range(1, street.lanes):
        for side in (-1, 1):
            points = _part(street, side * number * LANE_WIDTH)
            out.add(
                'lane_divider',
                line_token=out.line(points),
                lane_divider_segments=_segments(
                    out, points, 'SINGLE_DASHED_WHITE'
                ),
            )


def _segments(out: MapWriter, points: np.ndarray, kind: str) -> list[dict]:
    return [
        {'node_token': token, 'segment_type': kind}
        for token in out.nodes(points)
    ]


def _add_strips(
    out: MapWriter, street: Street, number: int, blocks: dict
) -> None:
    """The parking strips of a street."""
    if not street.has_parking:
        return
    inner = street.lanes * LANE_WIDTH
    outer = inner + street.strip
    for side in (-1, 1):
        near, far = _part(street, side * inner), _part(street, side * outer)
        out.add(
            'carpark_area',
            polygon_token=out.polygon(np.concatenate([near, far[::-1]])),
            orientation=street.path.start[2],
            road_block_token=blocks[number, side < 0],
        )


def _add_stop_lines(
    out: MapWriter, town: Town, number: int, blocks: dict, crossings: list
) -> None:
    """A strip across the lanes that lead to each junction."""
    street = town.streets[number]
    width = street.lanes * LANE_WIDTH
    length = street.path.length
    ends = (
        (street.source, STOP_LINE - 0.2, STOP_LINE + 0.2, width, False),
        (street.target, length - STOP_LINE - 0.2, 0, -width, True),
    )
    for junction, begin, end, left, forward in ends:
        end = end or begin + 0.4
        before = [
            crossings[i]
            for i, crossing in enumerate(town.crossings)
            if (crossing.street, crossing.junction) == (number, junction)
        ]
        out.add(
            'stop_line',
            polygon_token=out.polygon(street.band(0.0, left, begin, end)),
            stop_line_type='PED_CROSSING' if before else 'YIELD',
            ped_crossing_tokens=before,
            traffic_light_tokens=[],
            road_block_token=blocks[number, forward],
        )


def _add_lanes(out: MapWriter, town: Town) -> tuple[list[str], list[str]]:
    """Tokens of the lanes and of the ways over the junctions."""
    lanes = []
    for lane in town.lanes:
        left = lane.path.offset(LANE_WIDTH / 2).outline()
        right = lane.path.offset(-LANE_WIDTH / 2).outline()
        street = town.streets[lane.street]
        inner, outer = lane.number == 0, lane.number == street.lanes - 1
        yellow, white, none = (
            'DOUBLE_SOLID_YELLOW',
            'SINGLE_DASHED_WHITE',
            'NIL',
        )
        lanes.append(
            out.add(
                'lane',
                polygon_token=out.polygon(np.concatenate([right, left[::-1]])),
                lane_type='CAR',
                from_edge_line_token=out.line(np.stack([left[0], right[0]])),
                to_edge_line_token=out.line(np.stack([left[-1], right[-1]])),
                left_lane_divider_segments=_segments(
                    out, left, yellow if inner else white
                ),
                right_lane_divider_segments=_segments(
                    out, right, none if outer else white
                ),
            )
        )
    ways = []
    for way in town.connectors:
        left = way.path.offset(LANE_WIDTH / 2).outline(2.0)
        right = way.path.offset(-LANE_WIDTH / 2).outline(2.0)
        shape = out.polygon(np.concatenate([right, left[::-1]]))
        ways.append(out.add('lane_connector', polygon_token=shape))
    return lanes, ways


def _connectivity(town: Town, lanes: list[str], ways: list[str]) -> dict:
    out = {token: {'incoming': [], 'outgoing': []} for token in lanes + ways}
    for token, way in zip(ways, town.connectors, strict=True):
        source, target = lanes[way.source], lanes[way.target]
        out[token] = {'incoming': [source], 'outgoing': [target]}
        out[source]['outgoing'].append(token)
        out[target]['incoming'].append(token)
    return out


def drivable_mask(town: Town) -> np.ndarray:
    """Roads and walkways from above, uint8 0 or 255, ten pixels a metre."""
    width, height = (round(n / MASK_RESOLUTION) for n in town.size)
    mask = np.zeros((height, width), dtype=np.uint8)
    for polygon in [town.drivable, *town.walkways]:
        rings = [polygon.exterior, *polygon.interiors]
        pixels = []
        for ring in rings:
            points = np.array(ring.coords) / MASK_RESOLUTION
            points[:, 1] = height - points[:, 1]
            fine = np.round((points - 0.5) * (1 << SUBPIXEL_BITS))
            pixels.append(fine.astype(np.int32))
        cv2.fillPoly(mask, pixels, 255, cv2.LINE_8, SUBPIXEL_BITS)
    return mask
