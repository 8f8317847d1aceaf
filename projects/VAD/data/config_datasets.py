"""The datasets that a config names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config


def leaf_datasets(dataset: Any) -> Iterator[dict]:
    """Yields the innermost datasets of wrappers such as ConcatDataset.

    Args:
        dataset: The ``dataset`` of a dataloader; None has none.
    """
    if not isinstance(dataset, dict):
        return
    inner = list(dataset.get('datasets', []))
    if isinstance(dataset.get('dataset'), dict):
        inner.append(dataset['dataset'])
    if not inner:
        yield dataset
    for child in inner:
        yield from leaf_datasets(child)


def set_info_file(cfg: Config, path: str | Path) -> None:
    """Points the datasets of a config at one info file, in place.

    Not those that it trains on: nobody who tests on a file means that.

    Args:
        cfg: A config with a ``test_dataloader`` or a ``val_dataloader``.
        path: The info file; pictures next to it are found first.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The config has no such dataset.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f'info file {path} does not exist; pass the path of an mmdet3d '
            'info file (*.pkl).'
        )
    datasets = [
        dataset
        for key in ('val_dataloader', 'test_dataloader')
        for dataset in leaf_datasets((cfg.get(key) or {}).get('dataset'))
    ]
    if not datasets:
        raise ValueError(
            f'cannot point the config at {path}: it has no val_dataloader '
            'or test_dataloader with a dataset; use a config that has one.'
        )
    for dataset in datasets:
        dataset['ann_file'] = str(path.resolve())
