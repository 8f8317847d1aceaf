"""A drawn street scene in the format of a nuScenes keyframe.

It stands in for real data where none may be shipped: six pictures through a
calibrated rig, boxes, map lines and futures that agree with each other, in
an mmdet3d 1.x info file of plain containers and numpy arrays.
"""

import math
import pickle
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from projects.VAD.data.keyframe_dataset import CAMERAS, CLASSES, MAP_CLASSES
from projects.VAD.data.map_lines import line_targets
from projects.VAD.scene_renderer import Camera, Face, cuboid, render

# Height of the LiDAR above the road, metres.
GROUND_Z = -1.84
ROAD_HALF_WIDTH = 7.25
ROAD_END = 70.0
# How far VAD's map reaches to the front and to the rear, metres.
REGION_END = 30.0
CROSSING = (15.0, 18.5)
DIVIDERS = (-5.25, -1.75, 1.75, 5.25)
STEPS, STEP_SECONDS = 6, 0.5
EGO_SPEED = 4.0
# Camera: x, y, z in metres, degrees clockwise from forward, focal pixels.
RIG = {
    'CAM_FRONT': (0.0, 0.75, -0.30, 0.0, 1260.0),
    'CAM_FRONT_RIGHT': (0.45, 0.60, -0.31, 55.0, 1260.0),
    'CAM_FRONT_LEFT': (-0.45, 0.60, -0.31, -55.0, 1260.0),
    'CAM_BACK': (0.0, -0.95, -0.27, 180.0, 810.0),
    'CAM_BACK_LEFT': (-0.48, 0.10, -0.26, -110.0, 1260.0),
    'CAM_BACK_RIGHT': (0.48, 0.10, -0.26, 110.0, 1260.0),
}
# Class: length, width, height in metres; row of nuScenes' category table.
SHAPES = {
    'car': (4.5, 1.9, 1.6, 17),
    'truck': (7.0, 2.4, 3.0, 23),
    'construction_vehicle': (6.0, 2.6, 3.0, 18),
    'bus': (11.0, 2.8, 3.4, 16),
    'trailer': (9.0, 2.6, 3.4, 22),
    'barrier': (0.5, 2.0, 1.0, 9),
    'motorcycle': (2.1, 0.8, 1.5, 21),
    'bicycle': (1.8, 0.6, 1.6, 14),
    'pedestrian': (0.7, 0.7, 1.75, 2),
    'traffic_cone': (0.4, 0.4, 0.9, 12),
}
PAINTS = (
    (60, 60, 205),
    (190, 120, 50),
    (215, 215, 215),
    (70, 160, 70),
    (50, 170, 230),
    (120, 70, 130),
)
FORWARD, BACKWARD, RIGHT = math.pi / 2, -math.pi / 2, 0.0


class Thing(NamedTuple):
    """One annotated object standing on the ground."""

    name: str
    x: float
    y: float
    yaw: float
    speed: float
    paint: tuple[int, int, int]

    @property
    def size(self) -> np.ndarray:
        """Length, width and height in metres, ``[3]``."""
        return np.array(SHAPES[self.name][:3])

    @property
    def velocity(self) -> np.ndarray:
        """Metres per second, ``[2]``."""
        return self.speed * np.array([math.cos(self.yaw), math.sin(self.yaw)])


def write_keyframe(folder: str | Path, seed: int = 0) -> Path:
    """Draws one keyframe and writes it as six JPEGs and an info file.

    Args:
        folder: Where the files go; made if absent.
        seed: Places and colours of the objects; the same seed gives the
            same files.

    Returns:
        Path of the info file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    things = _place_things(rng)
    solids = [_solid(thing) for thing in things] + _buildings(rng)
    stem = f'synthetic_{seed:04d}'
    images = {}
    for name in CAMERAS:
        camera = _camera(name)
        picture = render(
            camera, GROUND_Z, ROAD_HALF_WIDTH, _marks(), solids, rng
        )
        file_name = f'{stem}__{name}.jpg'
        _write_jpeg(folder / file_name, picture)
        images[name] = dict(
            img_path=file_name,
            cam2img=camera.cam2img.tolist(),
            lidar2cam=camera.lidar2cam.tolist(),
        )
    path = folder / f'{stem}.pkl'
    content = _info_content(stem, images, things)
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def _write_jpeg(path: Path, picture: np.ndarray) -> None:
    # Encoded in memory: cv2.imwrite reports an unwritable place by False.
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
    path.write_bytes(cv2.imencode('.jpg', picture, quality)[1].tobytes())


def _info_content(stem: str, images: dict, things: list[Thing]) -> dict:
    """The info file in the layout of mmdet3d 1.x."""
    info = dict(
        sample_idx=0,
        token=stem,
        scene_token=stem,
        timestamp=0.0,
        ego2global=np.eye(4).tolist(),
        images=images,
        lidar_points=dict(lidar2ego=_lidar2ego().tolist()),
        instances=[_instance(thing) for thing in things],
        gt_map=_map_targets(),
        gt_ego=_ego_targets(),
    )
    metainfo = dict(
        categories={name: i for i, name in enumerate(CLASSES)},
        dataset='synthetic',
        info_version='1.1',
    )
    return dict(metainfo=metainfo, data_list=[info])


def _place_things(rng: np.random.Generator) -> list[Thing]:
    """Objects in slots that cannot overlap, jittered by the seed."""

    def make(name, x, y, yaw=FORWARD, speed=0.0):
        x, y = x + rng.uniform(-0.15, 0.15), y + rng.uniform(-1.2, 1.2)
        yaw = yaw + rng.uniform(-0.04, 0.04)
        paint = PAINTS[rng.integers(len(PAINTS))]
        return Thing(name, x, y, yaw, speed, paint)

    things = [
        make('car', 0.0, 22.5, speed=EGO_SPEED),
        make('car', 0.0, -11.0, speed=EGO_SPEED),
        make('motorcycle', 0.2, -19.0, speed=EGO_SPEED),
        make('truck', 3.5, 9.0, speed=3.0),
        make('car', 3.5, -4.5, speed=5.0),
        make('bus', 3.5, -19.0, speed=5.0),
        make('construction_vehicle', 3.5, 27.0),
        make('car', -3.5, 7.0, BACKWARD, 6.0),
        make('car', -3.5, 25.0, BACKWARD, 6.0),
        make('trailer', -3.5, -9.0, BACKWARD, 5.0),
        make('bicycle', -3.4, -22.0, BACKWARD, 4.0),
    ]
    for y in (-24.0, -16.0, 3.0, 11.0, 24.0):
        things.append(make('car', 6.3, y))
    for y in (-26.0, -12.0, -3.0, 5.0, 22.0):
        things.append(make('car', -6.3, y, BACKWARD))
    for x, y in ((8.4, 14.0), (8.6, -9.0), (-8.5, 9.5), (-8.3, -17.0)):
        things.append(make('pedestrian', x, y, FORWARD, 1.2))
    things.append(make('pedestrian', -1.0, 16.7, RIGHT, 1.3))
    for y in (-7.0, -4.0, 0.0):
        things.append(make('traffic_cone', 5.6, y))
    things.append(make('barrier', 6.5, -1.5, BACKWARD))
    return things


def _solid(thing: Thing) -> list[Face]:
    """Faces of one object, all inside its box and touching its sides."""
    length, width, height = thing.size
    foot = np.array([thing.x, thing.y, GROUND_Z])

    def part(size, bottom, colour, taper=1.0):
        centre = foot + np.array([0.0, 0.0, bottom * height])
        scaled = np.array(size) * (length, width, height)
        return cuboid(centre, scaled, thing.yaw, colour, taper)

    dark, glass = (38, 38, 40), (92, 78, 62)
    if thing.name == 'traffic_cone':
        return part((1, 1, 1), 0, (30, 110, 245), taper=0.12)
    if thing.name == 'barrier':
        return part((1, 1, 1), 0, (60, 150, 235))
    if thing.name == 'pedestrian':
        return [
            *part((0.55, 0.6, 0.48), 0, (95, 60, 50)),
            *part((0.75, 1.0, 0.37), 0.48, thing.paint),
            *part((0.4, 0.4, 0.15), 0.85, (140, 170, 215)),
        ]
    if thing.name in ('bicycle', 'motorcycle'):
        return [
            *part((1, 0.3, 0.55), 0, dark),
            *part((0.35, 0.9, 0.32), 0.55, thing.paint),
            *part((0.16, 0.4, 0.13), 0.87, (140, 170, 215)),
        ]
    if thing.name == 'car':
        return [
            *part((0.94, 0.92, 0.16), 0, dark),
            *part((1, 1, 0.44), 0.16, thing.paint),
            *part((0.62, 0.94, 0.34), 0.60, glass, taper=0.82),
            *part((0.5, 0.76, 0.06), 0.94, thing.paint),
        ]
    return [
        *part((0.96, 0.92, 0.14), 0, dark),
        *part((1, 1, 0.46), 0.14, thing.paint),
        *part((1, 1, 0.2), 0.60, glass),
        *part((1, 1, 0.2), 0.80, thing.paint),
    ]


def _buildings(rng: np.random.Generator) -> list[list[Face]]:
    """Houses along the street; they are not annotated."""
    houses = []
    for side in (-1, 1):
        for y in np.arange(-62.0, 70.0, 14.0):
            size = (rng.uniform(9, 12.5), 8.0, rng.uniform(5, 13))
            tone = rng.uniform(0.75, 1.1)
            colour = tuple(np.array([150.0, 165.0, 182.0]) * tone)
            foot = np.array([side * 18.0, y, GROUND_Z])
            houses.append(cuboid(foot, size, FORWARD, colour))
    return houses


def _marks() -> list[Face]:
    """Paint on the road: lane lines, kerbs and the crossing's stripes."""
    white, kerb = (225, 228, 230), (175, 180, 182)
    marks = []
    for x in DIVIDERS:
        for y in np.arange(-ROAD_END, ROAD_END, 6.0):
            marks.append(_patch(x - 0.08, x + 0.08, y, y + 3.0, white))
    for x in (-ROAD_HALF_WIDTH, ROAD_HALF_WIDTH):
        for y in np.arange(-ROAD_END, ROAD_END, 5.0):
            marks.append(_patch(x - 0.12, x + 0.12, y, y + 5.0, kerb))
    stripes = np.arange(-ROAD_HALF_WIDTH + 0.4, ROAD_HALF_WIDTH - 0.5, 1.0)
    for x in stripes:
        marks.append(_patch(x, x + 0.5, *CROSSING, white))
    return marks


def _patch(x0: float, x1: float, y0: float, y1: float, colour: tuple) -> Face:
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return Face(np.array([(*c, GROUND_Z) for c in corners]), colour)


def _camera(name: str) -> Camera:
    x, y, z, degrees, focal = RIG[name]
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    # Rows: the camera's right, down and viewing directions.
    rotation = np.array([[cos, -sin, 0], [0, 0, -1], [sin, cos, 0]])
    lidar2cam = np.eye(4)
    lidar2cam[:3, :3] = rotation
    lidar2cam[:3, 3] = -rotation @ np.array([x, y, z])
    cam2img = np.array([[focal, 0, 800.0], [0, focal, 450.0], [0, 0, 1.0]])
    return Camera(cam2img, lidar2cam)


def _lidar2ego() -> np.ndarray:
    out = np.eye(4)
    out[:2, :2] = [[0, 1], [-1, 0]]
    out[:3, 3] = (0.94, 0.0, -GROUND_Z)
    return out


def _instance(thing: Thing) -> dict:
    """One entry of ``instances``; ``bbox_3d`` has the gravity centre."""
    length, width, height = thing.size.tolist()
    centre = [thing.x, thing.y, GROUND_Z + height / 2]
    label = CLASSES.index(thing.name)
    # About what a 32-beam scanner leaves on a face of that area.
    points = int(4000 * height * width / (thing.x**2 + thing.y**2))
    steps = np.tile(thing.velocity * STEP_SECONDS, (STEPS, 1))
    feature = [
        *(thing.x, thing.y, thing.yaw, *thing.velocity),
        *(width, length, height, SHAPES[thing.name][3]),
    ]
    attributes = np.concatenate(
        [
            steps.ravel(),
            np.ones(STEPS),
            [_goal(steps)],
            feature,
            np.zeros(STEPS),
        ]
    )
    return dict(
        bbox_label=label,
        bbox_label_3d=label,
        bbox_3d=[*centre, length, width, height, thing.yaw],
        velocity=thing.velocity.tolist(),
        num_lidar_pts=points,
        num_radar_pts=0,
        bbox_3d_isvalid=points > 0,
        attr_labels=attributes.astype(np.float32),
    )


def _goal(steps: np.ndarray) -> int:
    """Direction class of the last position: 0 to 7, 9 if it stays."""
    x, y = steps.sum(0)
    if math.hypot(x, y) < 2.0:
        return 9
    return int((math.atan2(y, x) + math.pi) // (math.pi / 4)) % 8


def _map_targets() -> dict:
    """Map lines in the region of VAD, 20 points each, metres."""
    end, half = REGION_END, ROAD_HALF_WIDTH
    near, far = CROSSING
    ring = [(-half, near), (-half, far), (half, far), (half, near)]
    lines = {
        'divider': [[(x, -end), (x, end)] for x in DIVIDERS],
        'ped_crossing': [[*ring, ring[0]]],
        'boundary': [[(x, -end), (x, end)] for x in (-half, half)],
    }
    labels = [MAP_CLASSES.index(name) for name in lines for _ in lines[name]]
    shapes = [np.array(line) for name in lines for line in lines[name]]
    return line_targets(shapes, labels)


def _ego_targets() -> dict:
    """The vehicle drives straight on at constant speed."""
    step = [0.0, EGO_SPEED * STEP_SECONDS]
    status = [0, EGO_SPEED, 0, 0, 0, 4.084, 1.85, EGO_SPEED, 0]
    return dict(
        fut_trajs=np.tile(np.float32(step), (STEPS, 1)),
        fut_masks=np.ones(STEPS, dtype=np.float32),
        fut_cmd=np.float32([0, 0, 1]),
        his_trajs=np.tile(np.float32(step), (2, 1)),
        lcf_feat=np.float32(status),
    )
