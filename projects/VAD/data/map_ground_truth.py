"""Map lines around a pose, out of nuScenes' map expansion.

Everything that comes out is in the LiDAR frame of the pose, in metres, x to
the right and y forward.
"""

import json
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from shapely import Polygon, STRtree, affinity, box
from shapely.geometry.base import BaseGeometry
from shapely.ops import unary_union

from projects.VAD.data.keyframe_dataset import MAP_CLASSES
from projects.VAD.data.map_lines import REGION, boundary_lines, crossing_lines

DIVIDER_LAYERS = ('road_divider', 'lane_divider')
POLYGON_LAYERS = ('ped_crossing', 'road_segment', 'lane')
# Square metres below which a closed border is a gap of rounding.
NO_AREA = 1e-6


class LocationMap:
    """The lines and areas of one location that VAD learns.

    Only their geometry is kept, in trees that find what is near: the map
    expansion itself takes some hundred megabytes per location.

    Args:
        layers: Name of each layer -> its lines or polygons in the global
            frame. Empty and invalid ones are dropped.

    Raises:
        ValueError: If a layer is missing.
    """

    def __init__(self, layers: dict[str, Iterable[BaseGeometry]]) -> None:
        needed = (*DIVIDER_LAYERS, *POLYGON_LAYERS)
        missing = [name for name in needed if name not in layers]
        if missing:
            raise ValueError(
                f'a map needs the layers {", ".join(needed)}, found no '
                f'{", ".join(missing)}; use the nuScenes map expansion.'
            )
        self._trees = {
            name: STRtree(
                [s for s in layers[name] if not s.is_empty and s.is_valid]
            )
            for name in needed
        }

    def lines(
        self, lidar2global: np.ndarray, region: Sequence[float] = REGION
    ) -> dict[str, list[np.ndarray]]:
        """Returns the lines of each class in the region around a pose.

        Args:
            lidar2global: ``[4, 4]`` pose; of its rotation only the yaw
                counts.
            region: Size of the region in x and y, metres.

        Returns:
            Map class -> lines ``[k, 2]`` float32; one that no border of the
            region cuts is closed (first point = last).
        """
        patch, to_local = _placed(np.asarray(lidar2global), region)
        cut = {name: self._cut(name, patch) for name in self._trees}
        dividers = [
            affinity.affine_transform(piece, to_local)
            for name in DIVIDER_LAYERS
            for shape in cut[name]
            for piece in getattr(shape, 'geoms', [shape])
            if piece.geom_type == 'LineString' and piece.length > 0
        ]
        # Joined before they are moved, each layer first: rounding would leave
        # gaps of no width between neighbours, which come out as borders.
        areas = {name: unary_union(cut[name]) for name in POLYGON_LAYERS}
        drivable = unary_union([areas['road_segment'], areas['lane']])
        crossings, roads = (
            affinity.affine_transform(area, to_local)
            for area in (areas['ped_crossing'], drivable)
        )
        found = dict(
            divider=[np.asarray(line.coords) for line in dividers],
            ped_crossing=crossing_lines([crossings], region),
            boundary=[
                line
                for line in boundary_lines([roads], [], region)
                if not _encloses_nothing(line)
            ],
        )
        return {
            name: [line.astype(np.float32) for line in found[name]]
            for name in MAP_CLASSES
        }

    def _cut(self, layer: str, patch: BaseGeometry) -> list[BaseGeometry]:
        """The parts of a layer that lie in a patch."""
        tree = self._trees[layer]
        near = np.sort(tree.query(patch, predicate='intersects'))
        parts = (shape.intersection(patch) for shape in tree.geometries[near])
        return [part for part in parts if not part.is_empty]


class MapExpansion:
    """The maps of a nuScenes folder; each location is read when asked for.

    A process reads each of them once, and the processes that it forks have
    it without reading.

    Args:
        data_root: Folder that holds ``maps/expansion/LOCATION.json``.
    """

    def __init__(self, data_root: str | Path) -> None:
        self.data_root = Path(data_root)

    def exists(self) -> bool:
        """Whether the folder has a map at all."""
        return any(self.data_root.glob('maps/expansion/*.json'))

    def read(self, locations: Iterable[str | None]) -> None:
        """Reads the maps of some locations ahead.

        Raises:
            FileNotFoundError: One is not in the folder.
            ValueError: nuscenes-devkit cannot read one.
        """
        for location in locations:
            if location is not None:
                self[location]

    def __getitem__(self, location: str) -> LocationMap:
        """Returns the map of a location.

        Raises:
            FileNotFoundError: It is not in the folder.
            ValueError: nuscenes-devkit cannot read it.
        """
        path = self.data_root / 'maps' / 'expansion' / f'{location}.json'
        if not path.is_file():
            raise FileNotFoundError(
                f'map {path} does not exist; unpack the nuScenes map '
                'expansion (version 1.3) into the folder of the data set.'
            )
        state = path.stat()
        version = state.st_ino, state.st_mtime_ns, state.st_size
        return _read_map(self.data_root.resolve(), location, version)


@lru_cache(maxsize=8)
def _read_map(
    data_root: Path, location: str, _version: tuple[int, ...]
) -> LocationMap:
    api = _open_map(data_root, location)
    layers = {
        name: [api.extract_line(r['line_token']) for r in getattr(api, name)]
        for name in DIVIDER_LAYERS
    }
    for name in POLYGON_LAYERS:
        tokens = [r['polygon_token'] for r in getattr(api, name)]
        layers[name] = [api.extract_polygon(token) for token in tokens]
    return LocationMap(layers)


def read_map_ann_file(path: Path) -> dict[str, dict[str, list]]:
    """Reads map lines as VAD caches them for evaluation.

    Args:
        path: ``{GTs: [{sample_token, vectors: [{pts, cls_name, ...}]}]}``.

    Returns:
        Token of the keyframe -> map class -> lines ``[k, 2]``.

    Raises:
        ValueError: The file has another layout.
    """
    try:
        samples = json.loads(path.read_bytes())['GTs']
        return {
            sample['sample_token']: {
                name: [
                    np.asarray(vector['pts'], np.float32)
                    for vector in sample['vectors']
                    if vector['cls_name'] == name
                ]
                for name in MAP_CLASSES
            }
            for sample in samples
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'map_ann_file {path} has another layout than VAD writes '
            f'({type(error).__name__}: {error}); leave it out or make it '
            'again.'
        ) from error


def _placed(
    pose: np.ndarray, region: Sequence[float]
) -> tuple[BaseGeometry, list[float]]:
    """The region around a pose, and the transform into its frame."""
    x, y = pose[:2, 3]
    yaw = math.atan2(pose[1, 0], pose[0, 0])
    half_x, half_y = region[0] / 2, region[1] / 2
    patch = box(x - half_x, y - half_y, x + half_x, y + half_y)
    patch = affinity.rotate(patch, yaw, origin=(x, y), use_radians=True)
    cos, sin = math.cos(yaw), math.sin(yaw)
    to_local = [
        *(cos, sin, -sin, cos),
        *(-cos * x - sin * y, sin * x - cos * y),
    ]
    return patch, to_local


def _encloses_nothing(line: np.ndarray) -> bool:
    closed = len(line) > 3 and np.array_equal(line[0], line[-1])
    return closed and Polygon(line).area < NO_AREA


def _open_map(data_root: Path, location: str):
    # The import sets a plot style for the whole process.
    from matplotlib import rc_context

    with rc_context():
        from nuscenes.map_expansion.map_api import NuScenesMap
    try:
        return NuScenesMap(str(data_root), location)
    except Exception as error:
        # The devkit raises bare Exception and AssertionError.
        raise ValueError(
            f'nuscenes-devkit cannot read the map of {location} in '
            f'{data_root} ({type(error).__name__}: {error}); unpack the map '
            'expansion, version 1.3, again.'
        ) from error
