"""CIFAR-10 and CIFAR-100 from a folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torchvision
from mmengine.logging import print_log

from ..checkpoints.plain_pickle import load_plain_pickle
from ..checks import check_choice
from ..registry import DATASETS
from .images import ImageArrays, cut

# torchvision knows the files of each set, their sums and their classes.
_KINDS = {
    'cifar10': (torchvision.datasets.CIFAR10, 'labels', 50000, 10000),
    'cifar100': (torchvision.datasets.CIFAR100, 'fine_labels', 50000, 10000),
}


@DATASETS.register_module()
class CIFAR(ImageArrays):
    """Images of torchvision's CIFAR classes, from files that are there.

    A folder with fewer batches, or batches with fewer images, is read too,
    and the log says how many there are. Nothing is ever downloaded, and the
    files, which are pickles, are read without running their code.

    Args:
        kind: ``cifar10`` or ``cifar100``.
        data_root: The folder that holds ``cifar-10-batches-py`` (or
            ``cifar-100-python``), or that folder itself.
        split: ``train``, ``val`` (the last training images), ``trainval`` or
            ``test``.
        pipeline: Transforms.
        num_val: Size of ``val``, or a fraction below 1. The public scripts
            take 5,000 of 50,000.
        num_images: Only the first so many; ``None`` takes all.

    Raises:
        FileNotFoundError: If no file of the set is there.
        ValueError: If a file is damaged or holds something else.
    """

    def __init__(
        self,
        kind: str,
        data_root: str,
        split: str,
        pipeline: Sequence[dict] = (),
        num_val: int | float = 0.1,
        num_images: int | None = None,
    ) -> None:
        check_choice('kind', kind, tuple(_KINDS))
        splits = ('train', 'val', 'trainval', 'test')
        check_choice('split', split, splits)
        self.kind = kind
        source, _, train, test = _KINDS[kind]
        folder = Path(data_root).expanduser()
        if (folder / source.base_folder).is_dir():
            folder /= source.base_folder
        images, labels, files = self._read(folder, split)
        whole = test if split == 'test' else train
        print_log(
            f'{kind} {split}: {len(images)} images in {files} under {folder} '
            f'(the original has {whole})',
            'current',
        )
        if split != 'test':
            start, stop = cut(split, len(images), num_val)
            images, labels = images[start:stop], labels[start:stop]
        classes = _classes(folder, source, max(labels, default=0))
        super().__init__(
            images[:num_images], labels[:num_images], classes, pipeline
        )

    def _read(
        self, folder: Path, split: str
    ) -> tuple[np.ndarray, list[int], str]:
        source, key, *_ = _KINDS[self.kind]
        entries = source.test_list if split == 'test' else source.train_list
        paths = [folder / name for name, _ in entries]
        found = [path for path in paths if path.is_file()]
        if not found:
            raise FileNotFoundError(
                f'none of {", ".join(p.name for p in paths)} is in {folder}; '
                f'unpack {source.filename} (from {source.url}) there, '
                'nothing is downloaded by itself'
            )
        parts, labels = [], []
        for path in found:
            batch = _read_batch(path)
            parts.append(_pictures(batch, path))
            labels += list(batch.get(key, ()))
            if len(labels) != sum(map(len, parts)):
                raise ValueError(
                    f'{path} has {len(parts[-1])} images and '
                    f'{len(batch.get(key, ()))} {key}; copy it again'
                )
        files = f'{len(found)} of {len(paths)} files'
        return np.concatenate(parts), labels, files


def _read_batch(path: Path) -> dict:
    # The originals were written by Python 2; some copies have byte keys.
    found = load_plain_pickle(path, encoding='latin1')
    if not isinstance(found, dict):
        raise ValueError(
            f'{path} holds a {type(found).__name__}, a dict was expected'
        )
    return {
        k.decode('latin1') if isinstance(k, bytes) else k: v
        for k, v in found.items()
    }


def _pictures(batch: dict, path: Path) -> np.ndarray:
    data = batch.get('data')
    if not isinstance(data, np.ndarray) or data.shape[1:] != (3072,):
        raise ValueError(
            f'{path} holds no CIFAR images: `data` should be an array of '
            f'3072 columns, found {getattr(data, "shape", type(data))}'
        )
    pictures = data.astype(np.uint8).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(pictures.transpose(0, 2, 3, 1))


def _classes(folder: Path, source: type, largest: int) -> list[str]:
    path = folder / source.meta['filename']
    if path.is_file():
        return list(_read_batch(path)[source.meta['key']])
    count = 100 if source.base_folder == 'cifar-100-python' else 10
    return [f'class {i}' for i in range(max(count, largest + 1))]
