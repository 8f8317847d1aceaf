"""Turns a nuScenes folder into the info files that VAD trains on.

One file per split, ``{infos: [...], metadata: {...}}``, one info per
keyframe, with the keys of the original converter (boxes in the convention of
mmdet3d 0.17). Beyond these ``gt_map_lines`` holds the map around the frame, so
that training needs no map, and ``scene_name`` the name of the scene. Paths are
relative to the nuScenes folder: it may be moved with its info files.
"""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes
from pyquaternion import Quaternion

from mmprune.atomic_file import write_whole
from mmprune.errors import sentence
from projects.VAD.data.agent_info import agent_info
from projects.VAD.data.ego_info import (
    CanBus,
    ego_path,
    ego_status,
    path_speed,
)
from projects.VAD.data.keyframe_dataset import CAMERAS
from projects.VAD.data.map_ground_truth import MapExpansion
from projects.VAD.data.map_lines import REGION

# Each version with the names of its two splits in the devkit.
VERSIONS = {
    'v1.0-trainval': ('train', 'val'),
    'v1.0-mini': ('mini_train', 'mini_val'),
}
LIDAR = 'LIDAR_TOP'


class Source(NamedTuple):
    """What the infos of a nuScenes folder are made from."""

    nusc: NuScenes
    can_bus: CanBus
    maps: MapExpansion | None
    max_sweeps: int


def find_version(root: str | Path, version: str) -> str:
    """Returns the version whose tables are there.

    Args:
        root: The nuScenes folder.
        version: ``v1.0-trainval``, ``v1.0-mini``, or ``v1.0`` for the
            former, or the latter where there is no other.

    Raises:
        FileNotFoundError: The tables are not there.
        ValueError: There is no such version, or it has no annotations.
    """
    if version != 'v1.0' and version not in VERSIONS:
        raise ValueError(
            f'version {version!r} cannot be converted: VAD learns from '
            f'annotations; choose one of {", ".join(VERSIONS)} or v1.0.'
        )
    asked = VERSIONS if version == 'v1.0' else (version,)
    for name in asked:
        if (Path(root) / name / 'sample.json').is_file():
            return name
    raise FileNotFoundError(
        f'no tables of nuScenes {" or ".join(asked)} below {root} (looked '
        f'for {Path(root) / next(iter(asked)) / "sample.json"}); give the '
        'folder into which nuScenes was unpacked as --root-path.'
    )


def open_source(
    root: str | Path,
    version: str,
    can_bus_root: str | Path | None,
    with_map: bool = True,
    max_sweeps: int = 10,
) -> Source:
    """Opens the tables, the CAN bus and the maps of a nuScenes folder.

    Args:
        root: The nuScenes folder.
        version: As ``find_version`` returns it.
        can_bus_root: Folder that holds ``can_bus``; None for zeros.
        with_map: Whether map lines are wanted.
        max_sweeps: Scans before each keyframe to list.

    Raises:
        FileNotFoundError: The map expansion is wanted and not there.
        ValueError: nuscenes-devkit cannot read the tables.
    """
    maps = MapExpansion(root) if with_map else None
    if maps is not None and not maps.exists():
        raise FileNotFoundError(
            f'no map expansion in {Path(root) / "maps" / "expansion"}; '
            'unpack it there, or leave the map lines out with --no-map.'
        )
    try:
        nusc = NuScenes(version, str(root), verbose=False)
    except (AssertionError, KeyError, OSError, ValueError) as error:
        raise ValueError(
            f'nuscenes-devkit cannot read the tables in '
            f'{Path(root) / version} ({sentence(error)}); unpack nuScenes '
            'again.'
        ) from error
    return Source(nusc, CanBus(can_bus_root), maps, max_sweeps)


def split_scenes(nusc: NuScenes) -> dict[str, list[dict]]:
    """Returns the scenes of ``train`` and ``val``, in the tables' order.

    The devkit's lists say which is which: those of the version first, then
    those of the whole data set, for folders with scenes of both.
    """
    lists = create_splits_scenes()
    train, val = VERSIONS[nusc.version]
    split_of = dict.fromkeys(lists['train'], 'train')
    split_of |= dict.fromkeys(lists['val'], 'val')
    split_of |= dict.fromkeys(lists[train], 'train')
    split_of |= dict.fromkeys(lists[val], 'val')
    return {
        split: [s for s in nusc.scene if split_of.get(s['name']) == split]
        for split in ('train', 'val')
    }


def scene_infos(source: Source, scene: dict) -> list[dict]:
    """Returns the infos of a scene's keyframes, in order.

    Raises:
        FileNotFoundError: The scene's map is not there.
        ValueError: A keyframe lacks a camera or the LiDAR.
    """
    nusc = source.nusc
    samples, token = [], scene['first_sample_token']
    while token:
        samples.append(nusc.get('sample', token))
        token = samples[-1]['next']
    scans = [_sensor(nusc, s, LIDAR) for s in samples]
    poses = np.stack([_lidar2global(nusc, scan) for scan in scans])
    egos = [nusc.get('ego_pose', scan['ego_pose_token']) for scan in scans]
    location = nusc.get('log', scene['log_token'])['location']
    infos = []
    for i, sample in enumerate(samples):
        info = _bookkeeping(scene, sample, i, location)
        info |= _sensors(source, sample, scans[i], poses[i])
        info |= agent_info(nusc, sample, poses[i])
        info |= ego_path(poses, i)
        moment = scene['name'], sample['timestamp']
        info['can_bus'] = source.can_bus.numbers(*moment)
        speed, steering = source.can_bus.motion(
            *moment, left_hand_traffic=location.startswith('singapore')
        )
        info['gt_ego_lcf_feat'] = ego_status(
            np.stack([_matrix(ego) for ego in egos]),
            [ego['rotation'] for ego in egos],
            i,
            info['can_bus'],
            path_speed(info) if speed is None else speed,
            steering,
        )
        if source.maps is not None:
            info['gt_map_lines'] = source.maps[location].lines(poses[i])
        infos.append(info)
    return infos


def convert(
    source: Source,
    out_dir: str | Path,
    tag: str,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Path]:
    """Writes ``{tag}_infos_temporal_{train,val}.pkl``.

    A file is written beside its place and then renamed, so that no reader
    meets half of it.

    Args:
        source: What to convert.
        out_dir: Where the files go; made if absent.
        tag: First part of their names.
        progress: Called with the name of each scene before it is converted.

    Returns:
        Split -> path of its file. A split without scenes has an empty file.

    Raises:
        ValueError: No scene of the folder belongs to a split.
    """
    splits = split_scenes(source.nusc)
    if not any(splits.values()):
        names = ', '.join(s['name'] for s in source.nusc.scene[:3])
        raise ValueError(
            f'none of the {len(source.nusc.scene)} scenes ({names}, ...) is '
            "in nuScenes' train or val split; name scenes as nuScenes does."
        )
    metadata = dict(version=source.nusc.version)
    if source.maps is not None:
        metadata['map_region'] = list(REGION)
    paths = {}
    for split, scenes in splits.items():
        infos = []
        for scene in scenes:
            progress(scene['name'])
            infos += scene_infos(source, scene)
        paths[split] = Path(out_dir) / f'{tag}_infos_temporal_{split}.pkl'
        write_infos(paths[split], infos, metadata)
    return paths


def write_infos(path: Path, infos: list[dict], metadata: dict) -> None:
    """Writes an info file, whole or not at all.

    What is short comes first: it is known before the records are read.
    """
    content = dict(metadata=metadata, infos=infos)
    write_whole(path, pickle.dumps(content, protocol=4))


def _bookkeeping(
    scene: dict, sample: dict, index: int, location: str
) -> dict[str, Any]:
    return dict(
        token=sample['token'],
        prev=sample['prev'],
        next=sample['next'],
        scene_token=scene['token'],
        scene_name=scene['name'],
        frame_idx=index,
        timestamp=sample['timestamp'],
        map_location=location,
    )


def _sensors(
    source: Source, sample: dict, scan: dict, lidar2global: np.ndarray
) -> dict[str, Any]:
    """Calibration and files of the LiDAR and the cameras."""
    nusc = source.nusc
    global2lidar = np.linalg.inv(lidar2global)
    cams = {}
    for name in CAMERAS:
        data = _sensor(nusc, sample, name)
        mount = nusc.get('calibrated_sensor', data['calibrated_sensor_token'])
        cams[name] = _relative(nusc, data, global2lidar)
        cams[name]['cam_intrinsic'] = np.array(mount['camera_intrinsic'])
    sweeps, token = [], scan['prev']
    while token and len(sweeps) < source.max_sweeps:
        data = nusc.get('sample_data', token)
        sweeps.append(_relative(nusc, data, global2lidar))
        token = data['prev']
    mount = nusc.get('calibrated_sensor', scan['calibrated_sensor_token'])
    ego = nusc.get('ego_pose', scan['ego_pose_token'])
    return dict(
        cams=cams,
        sweeps=sweeps,
        lidar_path=scan['filename'],
        **_pose('lidar2ego', mount),
        **_pose('ego2global', ego),
    )


def _relative(
    nusc: NuScenes, data: dict, global2lidar: np.ndarray
) -> dict[str, Any]:
    """One file of a sensor; its own time and pose are accounted for."""
    mount = nusc.get('calibrated_sensor', data['calibrated_sensor_token'])
    ego = nusc.get('ego_pose', data['ego_pose_token'])
    sensor2lidar = global2lidar @ _matrix(ego) @ _matrix(mount)
    return dict(
        type=data['channel'],
        timestamp=data['timestamp'],
        data_path=data['filename'],
        sample_data_token=data['token'],
        **_pose('sensor2ego', mount),
        **_pose('ego2global', ego),
        sensor2lidar_rotation=sensor2lidar[:3, :3],
        sensor2lidar_translation=sensor2lidar[:3, 3],
    )


def _pose(name: str, record: dict) -> dict[str, Sequence[float]]:
    """Place and rotation of a record under the names of an info file."""
    parts = ('translation', 'rotation')
    return {f'{name}_{part}': record[part] for part in parts}


def _sensor(nusc: NuScenes, sample: dict, name: str) -> dict:
    if name not in sample['data']:
        raise ValueError(
            f'keyframe {sample["token"]} has no {name}, only '
            f'{", ".join(sorted(sample["data"]))}; VAD needs the LiDAR and '
            f'all {len(CAMERAS)} cameras.'
        )
    return nusc.get('sample_data', sample['data'][name])


def _lidar2global(nusc: NuScenes, scan: dict) -> np.ndarray:
    mount = nusc.get('calibrated_sensor', scan['calibrated_sensor_token'])
    ego = nusc.get('ego_pose', scan['ego_pose_token'])
    return _matrix(ego) @ _matrix(mount)


def _matrix(record: dict[str, Sequence[float]]) -> np.ndarray:
    """Pose of a record with translation and rotation, ``[4, 4]``."""
    out = Quaternion(record['rotation']).transformation_matrix
    out[:3, 3] = record['translation']
    return out
