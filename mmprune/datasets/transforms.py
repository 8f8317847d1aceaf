"""Augmentation of small images, and the step to tensors."""

from dataclasses import dataclass

import numpy as np
import torch

from ..registry import TRANSFORMS


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class PadCrop:
    """Pads with zeros and cuts the old size out at a random place.

    Args:
        padding: Pixels on each side.
    """

    padding: int = 4

    def __call__(self, results: dict) -> dict:
        """Returns the results with another ``img`` ``[h, w, c]``."""
        pad = self.padding
        height, width = results['img'].shape[:2]
        wide = np.pad(results['img'], ((pad, pad), (pad, pad), (0, 0)))
        top, left = np.random.randint(0, 2 * pad + 1, 2)
        img = wide[top : top + height, left : left + width]
        return {**results, 'img': img}


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class RandomMirror:
    """Mirrors left and right.

    Args:
        prob: How often.
    """

    prob: float = 0.5

    def __call__(self, results: dict) -> dict:
        """Returns the results, perhaps with a mirrored ``img``."""
        if np.random.random() >= self.prob:
            return results
        return {**results, 'img': results['img'][:, ::-1]}


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class ToTensor:
    """Packs ``dict(inputs, data_samples)`` for ``default_collate``."""

    def __call__(self, results: dict) -> dict:
        """Returns the image ``[c, h, w]`` uint8 and its label."""
        img = np.ascontiguousarray(results['img'].transpose(2, 0, 1))
        return dict(
            inputs=torch.from_numpy(img), data_samples=results['gt_label']
        )
