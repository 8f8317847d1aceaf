"""Keyframes for pruning: an example, and what to calibrate on."""

import copy
import tempfile
from pathlib import Path

from mmdet3d.registry import DATASETS
from mmengine.config import Config

from projects.VAD.data.config_datasets import leaf_datasets
from projects.VAD.data.keyframe_dataset import NuScenesKeyframeDataset
from projects.VAD.mini_world.keyframe import write_keyframe

DRAWN = 'a drawn frame of the mini world'


def example_dataset(cfg: Config) -> dict:
    """Returns a copy of the config's test dataset.

    Raises:
        ValueError: The config has none.
    """
    dataset = _first_dataset(cfg, 'test_dataloader')
    if dataset is None:
        raise ValueError(
            f'{cfg.filename} has no test_dataloader with a dataset, through '
            'whose pipeline an example could be read; add one.'
        )
    return dataset


def calibration_dataset(
    cfg: Config, ann_file: str | None = None
) -> dict | None:
    """Returns the config's training dataset as calibration reads it.

    Without anything random: keyframes come one by one and in order, through
    the pipeline of the test. Which boxes count is as in training.

    Args:
        cfg: The config.
        ann_file: The info file to read in place of the config's. With it the
            test dataset serves where the config has no other.
    """
    dataset = _first_dataset(cfg, 'train_dataloader')
    if dataset is None and ann_file is not None:
        dataset = example_dataset(cfg)
    if dataset is not None:
        pipeline = example_dataset(cfg).get('pipeline', [])
        dataset.update(pipeline=pipeline, test_mode=True)
        dataset.update({} if ann_file is None else dict(ann_file=ann_file))
    return dataset


def info_file(dataset: dict | None) -> str | None:
    """Returns the path of a dataset's info file if it is on this machine."""
    if dataset is None:
        return None
    path = Path(dataset.get('data_root') or '', dataset.get('ann_file', ''))
    return str(path) if path.is_file() else None


def read_samples(dataset: dict, count: int) -> list[dict]:
    """Returns up to so many samples of a dataset, the first of its file.

    The rest of an info file is not read.
    """
    kind = DATASETS.get(dataset.get('type'))
    ours = isinstance(kind, type) and issubclass(kind, NuScenesKeyframeDataset)
    first = dict(head=count) if ours else dict(indices=count)
    built = DATASETS.build(dict(dataset, **first))
    return [built[i] for i in range(len(built))]


def drawn_sample(dataset: dict, picture_size: tuple[int, int]) -> dict:
    """Returns a drawn keyframe as a dataset would read it.

    Args:
        dataset: Whose pipeline and settings are used.
        picture_size: Width and height of the pictures, before the pipeline.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = write_keyframe(folder, size=picture_size)
        (sample,) = read_samples(dict(dataset, ann_file=str(path)), 1)
    return sample


def _first_dataset(cfg: Config, loader: str) -> dict | None:
    datasets = leaf_datasets((cfg.get(loader) or {}).get('dataset'))
    first = next(datasets, None)
    return None if first is None else copy.deepcopy(first)
