"""Info files: read, changed, with code in them, and in data sets."""

import pickle
from pathlib import Path

import numpy as np

from projects.VAD.data.info_file import load_info_file
from projects.VAD.data.vad_dataset import NuScenesVADDataset

NAMES = ('train', 'val')
TRAIN = 'vad_nuscenes_infos_temporal_train.pkl'


def read_infos(folder: Path, split: str, tag: str = 'vad_nuscenes') -> dict:
    path = folder / f'{tag}_infos_temporal_{split}.pkl'
    return load_info_file(path, temporal=True)


class Bomb:
    def __init__(self, call, *args):
        self.reduced = call, args

    def __reduce__(self):
        return self.reduced


def train_set(root: Path, pipeline=(), **kwargs) -> NuScenesVADDataset:
    options = dict(use_valid_flag=True, queue_length=3) | kwargs
    name = options.pop('name', TRAIN)
    return NuScenesVADDataset(name, str(root), pipeline=pipeline, **options)


def val_set(root: Path, pipeline=(), **kwargs) -> NuScenesVADDataset:
    name = kwargs.pop('name', TRAIN)
    return NuScenesVADDataset(
        name, str(root), pipeline=pipeline, test_mode=True, **kwargs
    )


def rewrite(root: Path, change, name: str = TRAIN) -> None:
    """Changes the content of an info file."""
    content = load_info_file(root / name, temporal=True)
    change(content)
    (root / name).write_bytes(pickle.dumps(content))


def make_official(content: dict) -> None:
    """Gives the infos the form that the original converter left them in."""
    for info in content['infos']:
        info.pop('gt_map_lines')
        info['frame_idx'] = np.int64(info['frame_idx'])
        info['fut_valid_flag'] = np.bool_(info['fut_valid_flag'])
        info['lidar_path'] = './data/nuscenes/' + info['lidar_path']
        for camera in info['cams'].values():
            path = f'./data/nuscenes/{camera["data_path"]}'
            camera['data_path'] = path
        for key in info:
            if key.startswith('gt_') and info[key].dtype.kind == 'f':
                info[key] = info[key].astype(np.float64)
        info['gt_ego_fut_trajs'] = info['gt_ego_fut_trajs'].reshape(6, 2)
    content['metadata'] = dict(version='v1.0-trainval')
