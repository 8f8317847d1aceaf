"""Small images with labels, held in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from torch.utils.data import Dataset

from ..checks import check_choice
from ..registry import TRANSFORMS


class ImageArrays(Dataset):
    """Images of one size and their labels, through a pipeline.

    Args:
        images: ``[n, h, w, c]`` uint8.
        labels: Class of each.
        classes: Names of the classes.
        pipeline: Transforms of ``dict(img, gt_label)``.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int],
        classes: Sequence[str],
        pipeline: Sequence[dict],
    ) -> None:
        self.images = images
        self.labels = [int(label) for label in labels]
        self.metainfo = dict(classes=tuple(classes))
        self.pipeline = Compose([TRANSFORMS.build(step) for step in pipeline])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, idx: int) -> Any:
        return self.pipeline(
            dict(img=self.images[idx], gt_label=self.labels[idx])
        )


def cut(split: str, total: int, num_val: int | float) -> tuple[int, int]:
    """Returns the range of images that a split of a training set takes.

    Args:
        split: ``train`` (all but the last), ``val`` (the last) or
            ``trainval`` (all).
        total: Images there are.
        num_val: Images of ``val``, or a fraction of all below 1.

    Raises:
        ValueError: If a split is unknown or would be empty.
    """
    last = round(num_val * total) if num_val < 1 else int(num_val)
    ranges = dict(
        train=(0, total - last),
        val=(total - last, total),
        trainval=(0, total),
    )
    check_choice('split', split, tuple(ranges))
    start, stop = ranges[split]
    if not 0 <= start < stop:
        raise ValueError(
            f'split {split!r} of {total} images is empty with '
            f'num_val={num_val}; lower num_val or give more images'
        )
    return start, stop
