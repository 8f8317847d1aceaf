"""One record of VAD's temporal info files, as the data set wants it."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from pyquaternion import Quaternion

from projects.VAD.data.box_convention import to_new
from projects.VAD.data.keyframe_dataset import (
    CAMERAS,
    CLASSES,
    complete_can_bus,
)
from projects.VAD.data.matrices import as_4x4

# In the order of ``attr_labels``, with the width of each.
AGENT_KEYS = {
    'gt_agent_fut_trajs': 12,
    'gt_agent_fut_masks': 6,
    'gt_agent_fut_goal': 1,
    'gt_agent_lcf_feat': 9,
    'gt_agent_fut_yaw': 6,
}
EGO_KEYS = {
    'fut_trajs': (6, 2),
    'fut_masks': (6,),
    'fut_cmd': (3,),
    'his_trajs': (2, 2),
    'lcf_feat': (9,),
}
FUTURES = (*AGENT_KEYS, *(f'gt_ego_{key}' for key in EGO_KEYS))
PASSED_ON = (
    *('token', 'scene_token', 'timestamp'),
    *('scene_name', 'map_location', 'gt_map_lines'),
)
LABELS = {name: label for label, name in enumerate(CLASSES)}


def pack_info(info: dict, training: bool) -> dict[str, Any]:
    """Returns what is kept of a record until its keyframe is asked for.

    Everything is checked here, so that a broken record shows when the file
    is read. What takes time waits for ``unpack_info``.

    Args:
        info: One entry of ``infos``.
        training: Whether futures must be there.

    Raises:
        KeyError: A key is missing.
        ValueError: A part has another size.
    """
    if training:
        absent = [key for key in FUTURES if key not in info]
        if absent:
            raise KeyError(
                f'no {", ".join(absent)}, and VAD learns futures; make the '
                "file with this project's tools/create_data.py"
            )
    cameras = [info['cams'][name] for name in CAMERAS]
    record = {key: info[key] for key in PASSED_ON[:3]}
    record |= {key: info[key] for key in PASSED_ON[3:] if key in info}
    record |= dict(
        pictures=[str(camera['data_path']) for camera in cameras],
        scan=str(info.get('lidar_path', '')),
        intrinsics=np.array(
            [camera['cam_intrinsic'] for camera in cameras], np.float64
        ),
        lidar2cam=_lidar2cam(cameras),
        poses=_poses(info),
        objects=_objects(info),
    )
    if info.get('can_bus') is not None:
        record['can_bus'] = np.array(info['can_bus'], np.float64)
        complete_can_bus(record['can_bus'], None)
    if all(f'gt_ego_{key}' in info for key in EGO_KEYS):
        record['ego'] = _ego(info)
    return record


def unpack_info(record: dict, find: Callable[[str], str]) -> dict[str, Any]:
    """Returns what ``NuScenesKeyframeDataset`` keeps of a keyframe.

    Args:
        record: From ``pack_info``.
        find: From a path as the file has it to one on this machine.
    """
    images = {
        name: dict(
            img_path=find(picture),
            cam2img=as_4x4(intrinsic),
            lidar2cam=lidar2cam,
        )
        for name, picture, intrinsic, lidar2cam in zip(
            CAMERAS,
            record['pictures'],
            record['intrinsics'],
            record['lidar2cam'],
            strict=True,
        )
    }
    views = list(images.values())
    ego2global, lidar2ego = map(_matrix, record['poses'])
    can_bus = complete_can_bus(record.get('can_bus'), ego2global)
    # A quaternion and its negative are the same rotation; the weights were
    # trained on the sign that the file has.
    can_bus[3:7] = record['poses'][0, 3]
    keyframe = dict(
        images=images,
        img_path=[view['img_path'] for view in views],
        lidar2img=[v['cam2img'] @ v['lidar2cam'] for v in views],
        can_bus=can_bus,
        ego2global=ego2global,
        lidar2ego=lidar2ego,
        lidar_path=find(record['scan']),
    )
    keyframe |= {key: record[key] for key in PASSED_ON if key in record}
    keyframe |= _unpacked_objects(record['objects'])
    if 'ego' in record:
        keyframe['gt_ego'] = _unpacked_ego(record['ego'])
    return keyframe


def read_temporal_info(
    info: dict, find: Callable[[str], str], training: bool
) -> dict[str, Any]:
    """Returns the keyframe of a record that is asked for at once.

    Raises:
        KeyError: A key is missing.
        ValueError: A part has another size.
    """
    return unpack_info(pack_info(info, training), find)


def choose_folder(
    paths: Iterable[str], data_root: str, ann_file: str
) -> Callable[[str], str]:
    """Returns the function that finds the files of an info file.

    An info file may hold paths relative to the nuScenes folder, or below a
    folder of the machine that made it. The first rule that finds one of the
    pictures serves for all of them, so that opening a data set does not
    look for every file: below ``data_root``, next to the info file, as the
    path stands.

    Args:
        paths: Some pictures of the info file.
        data_root: Folder of the data set.
        ann_file: The info file.

    Raises:
        FileNotFoundError: No rule finds a picture, or only a few of them.
        ValueError: There are no pictures.
    """
    beside = os.path.dirname(ann_file)
    rules: Sequence[Callable[[str], str]] = (
        lambda path: os.path.join(data_root, _tail(path)),
        lambda path: os.path.join(beside, _tail(path)),
        lambda path: path,
    )
    paths = list(paths)
    if not paths:
        raise ValueError(
            f'info file {ann_file} has no keyframes with pictures: none of '
            'its scenes was there when it was made; name another one.'
        )
    for rule in rules:
        absent = [p for p in map(rule, paths) if not os.path.isfile(p)]
        if len(absent) == len(paths):
            continue
        if len(absent) > len(paths) / 2:
            raise FileNotFoundError(
                f'{len(absent)} of the first {len(paths)} keyframes of '
                f'{ann_file} have no pictures, first {absent[0]}; complete '
                'the data set, or make an info file of what is there.'
            )
        return rule
    raise FileNotFoundError(
        f'picture {paths[0]} of {ann_file} is neither below '
        f'{data_root or "."} nor next to the info file, nor at that path; set '
        'data_root to the folder of nuScenes.'
    )


def _tail(path: str) -> str:
    """A path from ``samples`` or ``sweeps`` on."""
    parts = path.replace('\\', '/').split('/')
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] in ('samples', 'sweeps'):
            return '/'.join(parts[i:])
    return path


def _lidar2cam(cameras: Sequence[dict]) -> np.ndarray:
    """``[cameras, 4, 4]``; refuses a calibration that is none."""
    sensor2lidar = np.zeros((len(cameras), 4, 4))
    sensor2lidar[:, :3, :3] = [c['sensor2lidar_rotation'] for c in cameras]
    sensor2lidar[:, :3, 3] = [c['sensor2lidar_translation'] for c in cameras]
    sensor2lidar[:, 3, 3] = 1
    return np.linalg.inv(sensor2lidar)


def _poses(info: dict) -> np.ndarray:
    """``[2, 7]``: translation and quaternion of the ego and of the LiDAR."""
    return np.array(
        [
            (*info[f'{name}_translation'], *info[f'{name}_rotation'])
            for name in ('ego2global', 'lidar2ego')
        ],
        np.float64,
    ).reshape(2, 7)


def _matrix(pose: np.ndarray) -> np.ndarray:
    matrix = Quaternion(pose[3:]).transformation_matrix
    matrix[:3, 3] = pose[:3]
    return matrix


def _objects(info: dict) -> dict[str, np.ndarray]:
    """Boxes with a known class; the test split has none at all."""
    names = np.asarray(info.get('gt_names', ())).tolist()
    count = len(names)
    labels = np.array([LABELS.get(name, -1) for name in names], np.int64)
    known = labels >= 0
    boxes = _sized(info, 'gt_boxes', count, 7)
    if not np.isfinite(boxes).all():
        raise ValueError('gt_boxes has a number that is not finite')
    velocity = _sized(info, 'gt_velocity', count, 2)
    points = _sized(info, 'num_lidar_pts', count, 1)[:, 0]
    radar = _sized(info, 'num_radar_pts', count, 1)[:, 0]
    valid = np.asarray(info.get('valid_flag', points + radar > 0), dtype=bool)
    out = dict(
        boxes=np.concatenate((boxes, velocity), axis=1)[known],
        labels=labels[known],
        seen=points[known] > 0,
        valid=valid[known],
    )
    if all(key in info for key in AGENT_KEYS):
        parts = [_sized(info, key, count, n) for key, n in AGENT_KEYS.items()]
        attributes = np.concatenate(parts, axis=1, dtype=np.float32)
        out['attr_labels'] = attributes[known]
    return out


def _unpacked_objects(objects: dict[str, np.ndarray]) -> dict:
    old = objects['boxes']
    old[:, 7:] = np.nan_to_num(old[:, 7:])
    boxes = to_new(torch.from_numpy(old)).numpy().astype(np.float32)
    out = dict(objects, boxes=boxes)
    if 'attr_labels' in out:
        out['attr_labels'] = np.nan_to_num(out['attr_labels'])
    return out


def _sized(info: dict, key: str, count: int, width: int) -> np.ndarray:
    """An array of the record as ``[count, width]`` float64."""
    value = np.asarray(info[key] if count else (), dtype=np.float64)
    if value.size != count * width:
        raise ValueError(
            f'{key} has the shape {value.shape} for {count} boxes, expected '
            f'{width} numbers for each'
        )
    return value.reshape(count, width)


def _ego(info: dict) -> np.ndarray:
    """All parts in the order of ``EGO_KEYS``, then whether they are whole."""
    parts = [
        np.asarray(info[f'gt_ego_{key}'], np.float32).reshape(shape).ravel()
        for key, shape in EGO_KEYS.items()
    ]
    masks = parts[list(EGO_KEYS).index('fut_masks')]
    whole = info.get('fut_valid_flag', masks.min() > 0)
    return np.concatenate((*parts, [bool(whole)]), dtype=np.float32)


def _unpacked_ego(numbers: np.ndarray) -> dict[str, np.ndarray]:
    ends = np.cumsum([math.prod(shape) for shape in EGO_KEYS.values()])
    *parts, whole = np.split(numbers, ends)
    ego = {
        key: part.reshape(shape)
        for (key, shape), part in zip(EGO_KEYS.items(), parts, strict=True)
    }
    return dict(ego, fut_valid_flag=np.array(bool(whole[0])))
