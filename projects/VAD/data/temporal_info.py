"""One record of VAD's temporal info files, as the data set wants it."""

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


def read_temporal_info(
    info: dict, find: Callable[[str], str], training: bool
) -> dict[str, Any]:
    """Returns what ``NuScenesKeyframeDataset`` keeps of a keyframe.

    Args:
        info: One entry of ``infos``.
        find: From a path as the file has it to one on this machine.
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
    images = {name: _camera(info['cams'][name], find) for name in CAMERAS}
    views = list(images.values())
    ego2global = _pose(info, 'ego2global')
    keyframe = dict(
        images=images,
        img_path=[view['img_path'] for view in views],
        lidar2img=[v['cam2img'] @ v['lidar2cam'] for v in views],
        can_bus=_can_bus(info, ego2global),
        ego2global=ego2global,
        lidar2ego=_pose(info, 'lidar2ego'),
        lidar_path=find(str(info.get('lidar_path', ''))),
        token=info['token'],
        scene_token=info['scene_token'],
        timestamp=info['timestamp'],
    )
    keyframe |= _objects(info)
    for key in ('scene_name', 'map_location', 'gt_map_lines'):
        if key in info:
            keyframe[key] = info[key]
    if all(f'gt_ego_{key}' in info for key in EGO_KEYS):
        keyframe['gt_ego'] = _ego(info)
    return keyframe


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
        FileNotFoundError: No rule finds a picture.
    """
    beside = os.path.dirname(ann_file)
    rules: Sequence[Callable[[str], str]] = (
        lambda path: os.path.join(data_root, _tail(path)),
        lambda path: os.path.join(beside, _tail(path)),
        lambda path: path,
    )
    paths = list(paths)
    for rule in rules:
        if any(os.path.isfile(rule(path)) for path in paths):
            return rule
    first = paths[0] if paths else 'of a keyframe'
    raise FileNotFoundError(
        f'picture {first} of {ann_file} is neither below {data_root or "."} '
        'nor next to the info file, nor at that path; set data_root to the '
        'folder of nuScenes.'
    )


def _tail(path: str) -> str:
    """A path from ``samples`` or ``sweeps`` on."""
    parts = path.replace('\\', '/').split('/')
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] in ('samples', 'sweeps'):
            return '/'.join(parts[i:])
    return path


def _camera(camera: dict, find: Callable[[str], str]) -> dict:
    sensor2lidar = np.eye(4)
    sensor2lidar[:3, :3] = camera['sensor2lidar_rotation']
    sensor2lidar[:3, 3] = camera['sensor2lidar_translation']
    return dict(
        img_path=find(str(camera['data_path'])),
        cam2img=as_4x4(camera['cam_intrinsic']),
        lidar2cam=np.linalg.inv(sensor2lidar),
    )


def _pose(info: dict, name: str) -> np.ndarray:
    pose = Quaternion(info[f'{name}_rotation']).transformation_matrix
    pose[:3, 3] = info[f'{name}_translation']
    return pose


def _can_bus(info: dict, ego2global: np.ndarray) -> np.ndarray:
    out = complete_can_bus(info.get('can_bus'), ego2global)
    # A quaternion and its negative are the same rotation; the weights were
    # trained on the sign that the file has.
    out[3:7] = info['ego2global_rotation'][0]
    return out


def _objects(info: dict) -> dict[str, np.ndarray]:
    """Boxes with a known class; the test split has none at all."""
    names = [str(name) for name in info.get('gt_names', ())]
    count = len(names)
    known = np.array([name in CLASSES for name in names], dtype=bool)
    old = _sized(info, 'gt_boxes', count, 7)
    if not np.isfinite(old).all():
        raise ValueError('gt_boxes has a number that is not finite')
    velocity = np.nan_to_num(_sized(info, 'gt_velocity', count, 2))
    boxes = to_new(torch.from_numpy(np.hstack((old, velocity)))).numpy()
    points = _sized(info, 'num_lidar_pts', count, 1)[:, 0]
    radar = _sized(info, 'num_radar_pts', count, 1)[:, 0]
    valid = np.asarray(info.get('valid_flag', points + radar > 0), dtype=bool)
    out = dict(
        boxes=boxes[known].astype(np.float32),
        labels=np.array(
            [CLASSES.index(name) for name in names if name in CLASSES],
            dtype=np.int64,
        ),
        seen=points[known] > 0,
        valid=valid[known],
    )
    if all(key in info for key in AGENT_KEYS):
        parts = [_sized(info, key, count, n) for key, n in AGENT_KEYS.items()]
        attributes = np.hstack(parts)[known].astype(np.float32)
        out['attr_labels'] = np.nan_to_num(attributes)
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


def _ego(info: dict) -> dict[str, np.ndarray]:
    ego = {
        key: np.asarray(info[f'gt_ego_{key}'], np.float32).reshape(shape)
        for key, shape in EGO_KEYS.items()
    }
    whole = info.get('fut_valid_flag', ego['fut_masks'].min() > 0)
    return dict(ego, fut_valid_flag=np.array(bool(whole)))
