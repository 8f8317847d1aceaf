"""Rows of nuScenes' v1.0 tables."""

import hashlib
from collections.abc import Callable

import numpy as np

from projects.VAD.mini_world.rig import (
    CAMERA_NAMES,
    CHANNELS,
    camera_to_ego,
    intrinsics,
    lidar_to_ego,
    quaternion,
)

TABLES = (
    *('category', 'attribute', 'visibility', 'instance', 'sensor'),
    *('calibrated_sensor', 'ego_pose', 'log', 'scene', 'sample'),
    *('sample_data', 'sample_annotation', 'map'),
)
# In the order of nuScenes' table: VAD reads classes from the row number.
CATEGORIES = (
    'noise',
    'animal',
    'human.pedestrian.adult',
    'human.pedestrian.child',
    'human.pedestrian.construction_worker',
    'human.pedestrian.personal_mobility',
    'human.pedestrian.police_officer',
    'human.pedestrian.stroller',
    'human.pedestrian.wheelchair',
    'movable_object.barrier',
    'movable_object.debris',
    'movable_object.pushable_pullable',
    'movable_object.trafficcone',
    'static_object.bicycle_rack',
    'vehicle.bicycle',
    'vehicle.bus.bendy',
    'vehicle.bus.rigid',
    'vehicle.car',
    'vehicle.construction',
    'vehicle.emergency.ambulance',
    'vehicle.emergency.police',
    'vehicle.motorcycle',
    'vehicle.trailer',
    'vehicle.truck',
    'flat.driveable_surface',
    'flat.other',
    'flat.sidewalk',
    'flat.terrain',
    'static.manmade',
    'static.other',
    'static.vegetation',
    'vehicle.ego',
)
# The category of each class.
CATEGORY_OF = {
    'car': 'vehicle.car',
    'truck': 'vehicle.truck',
    'construction_vehicle': 'vehicle.construction',
    'bus': 'vehicle.bus.rigid',
    'trailer': 'vehicle.trailer',
    'barrier': 'movable_object.barrier',
    'motorcycle': 'vehicle.motorcycle',
    'bicycle': 'vehicle.bicycle',
    'pedestrian': 'human.pedestrian.adult',
    'traffic_cone': 'movable_object.trafficcone',
}
ATTRIBUTES = (
    'vehicle.moving',
    'vehicle.stopped',
    'vehicle.parked',
    'cycle.with_rider',
    'cycle.without_rider',
    'pedestrian.sitting_lying_down',
    'pedestrian.standing',
    'pedestrian.moving',
)
# Upper end of the visible share of each token.
VISIBILITY = {'1': 0.4, '2': 0.6, '3': 0.8, '4': 1.0}


def token_maker(seed: int) -> Callable[[str], str]:
    """Returns a function from names to tokens of 32 hexadecimal digits."""

    def token(name: str) -> str:
        text = f'mini world {seed} {name}'.encode()
        return hashlib.md5(text, usedforsecurity=False).hexdigest()

    return token


def attribute_of(kind: str, speed: float, parked: bool) -> str | None:
    """Name of the attribute of an object, None where its class has none."""
    if kind in ('traffic_cone', 'barrier'):
        return None
    if kind == 'pedestrian':
        state = 'moving' if speed > 0.3 else 'standing'
        return f'pedestrian.{state}'
    if kind in ('bicycle', 'motorcycle'):
        return 'cycle.without_rider' if parked else 'cycle.with_rider'
    if parked:
        return 'vehicle.parked'
    return 'vehicle.moving' if speed > 0.3 else 'vehicle.stopped'


def visibility_token(share: float) -> str:
    """Token of the bin of a visible share between 0 and 1."""
    return next(t for t, end in VISIBILITY.items() if share <= end + 1e-9)


def fixed_tables(
    token: Callable[[str], str], size: tuple[int, int]
) -> dict[str, list[dict]]:
    """Returns the tables that do not depend on the scenes.

    Args:
        token: Gives the token of a name.
        size: Width and height of the pictures.
    """
    bounds = ('0-40', '40-60', '60-80', '80-100')
    return {
        'category': [
            dict(token=token(name), name=name, description='', index=i)
            for i, name in enumerate(CATEGORIES)
        ],
        'attribute': [
            dict(token=token(name), name=name, description='')
            for name in ATTRIBUTES
        ],
        'visibility': [
            dict(
                token=t,
                level=f'v{b}',
                description=f'visibility of whole object is between {b}%',
            )
            for t, b in zip(VISIBILITY, bounds, strict=True)
        ],
        'sensor': [
            dict(
                token=token(name),
                channel=name,
                modality='camera' if name in CAMERA_NAMES else 'lidar',
            )
            for name in CHANNELS
        ],
        'calibrated_sensor': [_calibrated(n, token, size) for n in CHANNELS],
    }


def _calibrated(
    name: str, token: Callable[[str], str], size: tuple[int, int]
) -> dict:
    is_camera = name in CAMERA_NAMES
    pose = camera_to_ego(name) if is_camera else lidar_to_ego()
    matrix = intrinsics(name, *size).tolist() if is_camera else []
    return dict(
        token=token(f'calibrated {name}'),
        sensor_token=token(name),
        translation=pose[:3, 3].tolist(),
        rotation=quaternion(pose),
        camera_intrinsic=matrix,
    )


def link(rows: list[dict]) -> None:
    """Fills ``prev`` and ``next`` of rows in their order, in place."""
    tokens = ['', *(row['token'] for row in rows), '']
    for i, row in enumerate(rows):
        row['prev'], row['next'] = tokens[i], tokens[i + 2]


def box_rows(pose: np.ndarray, size: tuple, yaw_rotation: list) -> dict:
    """The geometry of an annotation: centre, (w, l, h) and rotation."""
    length, width, height = size
    return dict(
        translation=[
            float(pose[0]),
            float(pose[1]),
            round(height / 2, 5),
        ],
        size=[width, length, height],
        rotation=yaw_rotation,
    )
