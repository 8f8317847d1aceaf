"""Keyframes to check an export on, and to lay beside it."""

import copy
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mmdet3d.registry import DATASETS
from mmengine.config import Config

from mmprune.atomic_file import save_json
from projects.VAD.data.keyframe_dataset import (
    CAMERAS,
    NuScenesKeyframeDataset,
)
from projects.VAD.mini_world.keyframe import write_keyframe
from projects.VAD.pruning.samples import example_dataset, info_file

# How far a repeated frame is from the one before: metres and degrees.
_AHEAD, _TURN = 1.7, 3.0


@contextmanager
def keyframes(
    cfg: Config, count: int, picture_size: tuple[int, int]
) -> Iterator[tuple[NuScenesKeyframeDataset, list[int]]]:
    """Gives the first frames of the test data, or a drawn one.

    Args:
        cfg: The config.
        count: How many frames are wanted; there may be fewer.
        picture_size: Width and height of a drawn picture.
    """
    config = example_dataset(cfg)
    with tempfile.TemporaryDirectory() as folder:
        if info_file(config) is None:
            drawn = write_keyframe(folder, size=tuple(picture_size))
            config.update(ann_file=str(drawn))
        dataset = DATASETS.build(dict(config, head=count))
        yield dataset, list(range(min(count, len(dataset))))


def chained(samples: list[dict], count: int) -> list[dict]:
    """Returns so many samples of one drive.

    Where there are fewer the last is repeated, and the vehicle drives on.
    """
    samples = list(samples[:count])
    while len(samples) < count:
        samples.append(_further(samples[-1]))
    return samples


def _further(sample: dict) -> dict:
    sample = copy.deepcopy(sample)
    can_bus = np.array(sample['data_samples'].metainfo['can_bus'], float)
    can_bus[:2] += _AHEAD * np.array(
        [np.cos(can_bus[16]), np.sin(can_bus[16])]
    )
    can_bus[16] += np.deg2rad(_TURN)
    can_bus[17] += _TURN
    sample['data_samples'].set_metainfo(dict(can_bus=can_bus))
    return sample


def write_frames(
    dataset: NuScenesKeyframeDataset, indices: list[int], folder: Path
) -> None:
    """Writes frames as ``deploy/run.py`` reads them, with their pictures."""
    frames = []
    for number, index in enumerate(indices):
        info = dataset.get_data_info(index)
        pictures = {}
        for name in CAMERAS:
            source = Path(info['images'][name]['img_path'])
            pictures[name] = f'{number:04d}_{name}{source.suffix}'
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / pictures[name])
        frame = dict(
            pictures=pictures,
            lidar2img=np.asarray(info['lidar2img']).tolist(),
            can_bus=np.asarray(info['can_bus'], float).tolist(),
            scene_token=str(info['scene_token']),
        )
        ego = info.get('gt_ego') or {}
        if 'lcf_feat' in ego:
            frame['ego_status'] = np.asarray(ego['lcf_feat'], float).tolist()
        if 'fut_cmd' in ego:
            frame['command'] = int(np.argmax(ego['fut_cmd']))
        frames.append(frame)
    save_json(frames, folder / 'frames.json')
