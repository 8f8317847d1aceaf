"""One key frame of the mini world, as an info file of its own.

It stands in for real data where there is none: six pictures, a sweep, boxes,
map lines and futures that agree with each other.
"""

import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np

from mmprune.atomic_file import write_whole
from projects.VAD.data.keyframe_dataset import CLASSES, MAP_CLASSES
from projects.VAD.data.map_ground_truth import MapExpansion
from projects.VAD.data.map_lines import line_targets
from projects.VAD.data.temporal_info import read_temporal_info
from projects.VAD.data.vad_dataset import NUM_PTS_FEATS
from projects.VAD.mini_world.names import scene_names
from projects.VAD.mini_world.scene_files import LOCATION, write_scene
from projects.VAD.mini_world.scenes import compose_moment
from projects.VAD.mini_world.traffic import conflicting_ways
from projects.VAD.mini_world.world import (
    EPOCH_US,
    check_size,
    empty_world,
    write_tables,
)

# Two key frames of the past and six of the future: what VAD reads of them.
PAST, FUTURE = 2, 6


def write_keyframe(
    folder: str | Path, seed: int = 0, size: tuple[int, int] = (1600, 900)
) -> Path:
    """Draws one key frame and writes it as seven files and an info file.

    The info file has the layout of mmdet3d 1.x, with ``gt_map``, ``gt_ego``
    and ``attr_labels``.

    Args:
        folder: Where the files go; made if absent.
        seed: Town, traffic and colours; the same seed gives the same files.
        size: Width and height of the pictures.

    Returns:
        Path of the info file.

    Raises:
        ValueError: For a size that cannot be.
        OSError: If the folder cannot be written to.
    """
    check_size(size)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = f'synthetic_{seed:04d}'
    with tempfile.TemporaryDirectory() as root:
        keyframe = _draw_moment(Path(root), seed, size)
        for name, view in keyframe['images'].items():
            view['img_path'] = _moved(view['img_path'], folder, stem, name)
        keyframe['lidar_path'] = _moved(
            keyframe['lidar_path'], folder, stem, 'LIDAR_TOP'
        )
    metainfo = dict(
        categories={name: i for i, name in enumerate(CLASSES)},
        dataset='mini world',
        info_version='1.1',
    )
    content = dict(metainfo=metainfo, data_list=[_entry(keyframe, stem)])
    path = folder / f'{stem}.pkl'
    write_whole(path, pickle.dumps(content, protocol=4))
    return path


def _draw_moment(root: Path, seed: int, size: tuple[int, int]) -> dict:
    """Writes a dataset of one moment; returns the key frame in its middle.

    The neighbours are there for history and futures alone and have no
    pictures.
    """
    # It takes seconds to import nuscenes-devkit, which nothing else needs.
    from projects.VAD.data.nuscenes_infos import open_source, scene_infos

    frames = PAST + 1 + FUTURE
    world = empty_world(root, seed, size, frames, drawn=(PAST,))
    rng = np.random.default_rng([seed, 1, 0])
    conflicts = conflicting_ways(world.town)
    moment = compose_moment(world.town, conflicts, rng, frames)
    version, ((name, _),) = scene_names(1)
    write_scene(world, moment, name, EPOCH_US, rng)
    # Nothing reads the mask, and no map of the neighbours is wanted.
    write_tables(world, version, mask=b'')
    source = open_source(root, version, root, with_map=False)
    info = scene_infos(source, source.nusc.scene[0])[PAST]
    keyframe = read_temporal_info(info, lambda path: str(root / path), True)
    pose = keyframe['ego2global'] @ keyframe['lidar2ego']
    return dict(
        keyframe,
        points=info['num_lidar_pts'].tolist(),
        gt_map_lines=MapExpansion(root)[LOCATION].lines(pose),
    )


def _moved(path: str, folder: Path, stem: str, sensor: str) -> str:
    """Moves a sensor's file to the info file; returns its name there."""
    ending = ''.join(Path(path).suffixes[-2:])
    name = f'{stem}__{sensor}{ending}'
    shutil.copyfile(path, folder / name)
    return name


def _entry(keyframe: dict, stem: str) -> dict:
    """One entry of ``data_list``."""
    images = {
        name: dict(
            img_path=view['img_path'],
            cam2img=view['cam2img'][:3, :3].tolist(),
            lidar2cam=view['lidar2cam'].tolist(),
        )
        for name, view in keyframe['images'].items()
    }
    lidar = dict(
        lidar_path=keyframe['lidar_path'],
        num_pts_feats=NUM_PTS_FEATS,
        lidar2ego=keyframe['lidar2ego'].tolist(),
    )
    return dict(
        sample_idx=0,
        token=stem,
        scene_token=stem,
        timestamp=keyframe['timestamp'] / 1e6,
        ego2global=keyframe['ego2global'].tolist(),
        can_bus=keyframe['can_bus'].tolist(),
        images=images,
        lidar_points=lidar,
        instances=_instances(keyframe),
        gt_map=_map_targets(keyframe['gt_map_lines']),
        gt_ego=keyframe['gt_ego'],
    )


def _instances(keyframe: dict) -> list[dict]:
    """Entries of ``instances``; ``bbox_3d`` has the gravity centre."""
    keys = ('boxes', 'labels', 'points', 'valid', 'attr_labels')
    objects = zip(*(keyframe[key] for key in keys), strict=True)
    return [
        dict(
            bbox_label=int(label),
            bbox_label_3d=int(label),
            bbox_3d=box[:7].tolist(),
            velocity=box[7:].tolist(),
            num_lidar_pts=points,
            num_radar_pts=0,
            bbox_3d_isvalid=bool(valid),
            attr_labels=attributes,
        )
        for box, label, points, valid, attributes in objects
    ]


def _map_targets(lines: dict[str, list[np.ndarray]]) -> dict:
    pairs = [
        (line, label)
        for label, name in enumerate(MAP_CLASSES)
        for line in lines[name]
    ]
    return line_targets([p[0] for p in pairs], [p[1] for p in pairs])
