"""A nuScenes folder small enough to know every answer by heart.

Scene ``scene-0061`` (train) has four keyframes, ``scene-0103`` (val) two. The
ego drives 4 m per keyframe along global +x from x = 100, y = 50; the LiDAR
sits 0.9 m ahead and 1.8 m above, x to the right and y forward. A car is seen
in the first three keyframes, a pedestrian without LiDAR points in all, and a
piece of debris, no class of VAD, in the first.
"""

import json
from pathlib import Path

import cv2
import numpy as np

from projects.VAD.data.keyframe_dataset import CAMERAS

CATEGORIES = (
    'animal',
    'human.pedestrian.adult',
    'movable_object.debris',
    'vehicle.car',
)
START = 1_500_000_000_000_000
STEP = 500_000
SCENES = {'scene-0061': 4, 'scene-0103': 2}
LIDAR_TURN = [0.5**0.5, 0.0, 0.0, -(0.5**0.5)]
CAMERA_TURN = [0.5, -0.5, 0.5, -0.5]
LEVEL = [1.0, 0.0, 0.0, 0.0]
# Shapes of the map in global metres: a road along x with one crossing.
SHAPES = dict(
    road=[(40, 43), (170, 43), (170, 57), (40, 57)],
    crossing=[(106, 43), (109, 43), (109, 57), (106, 57)],
    middle=[(40, 50), (170, 50)],
)


def write_nuscenes(root: Path) -> Path:
    """Writes tables, pictures, CAN bus and map; returns the folder."""
    tables = _tables()
    for name, count in SCENES.items():
        _add_scene(tables, name, count)
        _write_can_bus(root, name, count)
    folder = root / 'v1.0-mini'
    folder.mkdir(parents=True)
    for name, records in tables.items():
        (folder / f'{name}.json').write_text(json.dumps(records))
    for record in tables['sample_data']:
        path = root / record['filename']
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == '.jpg':
            shade = np.full((90, 160, 3), 128, np.uint8)
            path.write_bytes(cv2.imencode('.jpg', shade)[1].tobytes())
        else:
            path.write_bytes(np.zeros((2, 5), np.float32).tobytes())
    _write_map(root)
    return root


def _tables() -> dict[str, list[dict]]:
    sensors = {'LIDAR_TOP': 'lidar', **dict.fromkeys(CAMERAS, 'camera')}
    focal = [[100.0, 0.0, 80.0], [0.0, 100.0, 45.0], [0.0, 0.0, 1.0]]
    mounts = [
        dict(
            token=f'mount {name}',
            sensor_token=name,
            translation=[0.9, 0, 1.8] if kind == 'lidar' else [1.5, 0, 1.5],
            rotation=LIDAR_TURN if kind == 'lidar' else CAMERA_TURN,
            camera_intrinsic=[] if kind == 'lidar' else focal,
        )
        for name, kind in sensors.items()
    ]
    logs = [
        dict(
            token=f'log {name}',
            logfile=name,
            vehicle='n',
            date_captured='2020-01-01',
            location='singapore-onenorth',
        )
        for name in SCENES
    ]
    return dict(
        category=[
            dict(token=f'category {name}', name=name, description='')
            for name in CATEGORIES
        ],
        attribute=[],
        visibility=[],
        instance=[],
        sensor=[
            dict(token=name, channel=name, modality=kind)
            for name, kind in sensors.items()
        ],
        calibrated_sensor=mounts,
        ego_pose=[],
        log=logs,
        scene=[],
        sample=[],
        sample_data=[],
        sample_annotation=[],
        map=[
            dict(
                token='map',
                category='semantic_prior',
                filename='maps/mask.png',
                log_tokens=[log['token'] for log in logs],
            )
        ],
    )


def _add_scene(tables: dict, scene: str, count: int) -> None:
    def token(i):
        return f'{scene} {i}' if 0 <= i < count else ''

    start = START + list(SCENES).index(scene) * 3_600_000_000
    tables['scene'].append(
        dict(
            token=scene,
            name=scene,
            log_token=f'log {scene}',
            nbr_samples=count,
            first_sample_token=token(0),
            last_sample_token=token(count - 1),
            description='',
        )
    )
    for i in range(count):
        time = start + i * STEP
        tables['sample'].append(
            dict(
                token=token(i),
                timestamp=time,
                prev=token(i - 1),
                next=token(i + 1),
                scene_token=scene,
            )
        )
        for name in ('LIDAR_TOP', *CAMERAS):
            _add_file(tables, scene, i, name, time, count)
    _add_instance(tables, scene, 'car', 'vehicle.car', min(count, 3))
    person = 'human.pedestrian.adult'
    _add_instance(tables, scene, 'person', person, count)
    _add_instance(tables, scene, 'thing', 'movable_object.debris', 1)


def _add_file(tables, scene, i, name, time, count) -> None:
    # A camera fires 50 ms after the LiDAR; by then the ego is 0.4 m ahead.
    late = 0 if name == 'LIDAR_TOP' else 1
    token = f'{scene} {i} {name}'
    suffix = 'jpg' if late else 'pcd.bin'
    tables['ego_pose'].append(
        dict(
            token=token,
            timestamp=time + late * 50_000,
            translation=[100 + 4 * i + 0.4 * late, 50.0, 0.0],
            rotation=LEVEL,
        )
    )
    tables['sample_data'].append(
        dict(
            token=token,
            sample_token=f'{scene} {i}',
            ego_pose_token=token,
            calibrated_sensor_token=f'mount {name}',
            timestamp=time + late * 50_000,
            fileformat=suffix,
            is_key_frame=True,
            height=90,
            width=160,
            filename=f'samples/{name}/{scene}_{i}.{suffix}',
            prev=f'{scene} {i - 1} {name}' if i else '',
            next=f'{scene} {i + 1} {name}' if i + 1 < count else '',
        )
    )


# Size (w, l, h), rotation, position, metres per keyframe, LiDAR points.
THINGS = dict(
    car=([2.0, 4.0, 1.6], LEVEL, (110.0, 48.0, 1.0), (1.0, 0.0), 7),
    person=(
        [0.6, 0.7, 1.8],
        [0.5**0.5, 0, 0, 0.5**0.5],
        (104.0, 53.0, 0.9),
        (0.0, 0.0),
        0,
    ),
    thing=([1.0, 1.0, 1.0], LEVEL, (105.0, 50.0, 0.5), (0.0, 0.0), 3),
)


def _add_instance(tables, scene, name, category, count) -> None:
    def token(i):
        return f'{scene} {name} {i}' if 0 <= i < count else ''

    size, turn, (x, y, z), (dx, dy), points = THINGS[name]
    tables['instance'].append(
        dict(
            token=f'{scene} {name}',
            category_token=f'category {category}',
            nbr_annotations=count,
            first_annotation_token=token(0),
            last_annotation_token=token(count - 1),
        )
    )
    for i in range(count):
        tables['sample_annotation'].append(
            dict(
                token=token(i),
                sample_token=f'{scene} {i}',
                instance_token=f'{scene} {name}',
                attribute_tokens=[],
                visibility_token='',
                translation=[x + dx * i, y + dy * i, z],
                size=size,
                rotation=turn,
                num_lidar_pts=points,
                num_radar_pts=int(name == 'person'),
                prev=token(i - 1),
                next=token(i + 1),
            )
        )


def _write_can_bus(root: Path, scene: str, count: int) -> None:
    start = START + list(SCENES).index(scene) * 3_600_000_000
    times = range(start - 20_000, start + count * STEP, 20_000)
    poses = [
        dict(
            accel=[float(i), 0.1, 9.8],
            orientation=LEVEL,
            pos=[100 + i * 0.16, 50.0, 0.0],
            rotation_rate=[0.0, 0.0, 0.25],
            utime=time + 1000,
            vel=[8.0 + i, 0.0, 0.0],
        )
        for i, time in enumerate(times)
    ]
    angles = [dict(utime=time, value=0.5) for time in times]
    folder = root / 'can_bus'
    folder.mkdir(parents=True, exist_ok=True)
    for kind, messages in dict(pose=poses, steeranglefeedback=angles).items():
        (folder / f'{scene}_{kind}.json').write_text(json.dumps(messages))


def _write_map(root: Path) -> None:
    nodes, tokens = [], {}
    for name, points in SHAPES.items():
        tokens[name] = [f'{name} {i}' for i in range(len(points))]
        nodes += [
            dict(token=token, x=float(x), y=float(y))
            for token, (x, y) in zip(tokens[name], points, strict=True)
        ]
    empty = [
        'drivable_area',
        'road_block',
        'walkway',
        'stop_line',
        'carpark_area',
        'road_divider',
        'traffic_light',
        'lane_connector',
    ]
    content = dict(
        version='1.3',
        canvas_edge=[200.0, 100.0],
        node=nodes,
        polygon=[
            dict(token=name, exterior_node_tokens=tokens[name], holes=[])
            for name in ('road', 'crossing')
        ],
        line=[dict(token='middle', node_tokens=tokens['middle'])],
        road_segment=[dict(token='segment', polygon_token='road')],
        lane=[
            dict(
                token='lane',
                polygon_token='road',
                left_lane_divider_segments=[],
                right_lane_divider_segments=[],
            )
        ],
        ped_crossing=[dict(token='zebra', polygon_token='crossing')],
        lane_divider=[dict(token='divider', line_token='middle')],
        arcline_path_3={},
        connectivity={},
        **{name: [] for name in empty},
    )
    folder = root / 'maps' / 'expansion'
    folder.mkdir(parents=True)
    (folder / 'singapore-onenorth.json').write_text(json.dumps(content))
    mask = np.zeros((4, 4), np.uint8)
    (root / 'maps/mask.png').write_bytes(cv2.imencode('.png', mask)[1])
