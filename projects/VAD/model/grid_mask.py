"""Structured dropping of image squares in training."""

import numpy as np
import torch
from torch import Tensor, nn


class GridMask(nn.Module):
    """Zeroes a grid of squares, the same in all images of a call.

    Chen et al., GridMask Data Augmentation, 2020, without its rotation.
    Stripes of half the period keep the image, the squares between them go.

    Args:
        prob: Probability that a call is masked.
        ratio: Width of a stripe as a fraction of the period.
    """

    def __init__(self, prob: float = 0.7, ratio: float = 0.5) -> None:
        super().__init__()
        if not 0 <= prob <= 1:
            raise ValueError(
                f'GridMask prob={prob} is no probability; choose one in '
                '[0, 1].'
            )
        self.prob = prob
        self.ratio = ratio

    def forward(self, images: Tensor) -> Tensor:
        """Returns ``[n, 3, H, W]`` images, masked in training only.

        Numbers are drawn from numpy's generator as VAD draws them, one of
        them in evaluation too, so that a seed gives the same masks.
        """
        drawn = self.prob > 0 and np.random.rand() <= self.prob
        if not (drawn and self.training):
            return images
        height, width = images.shape[-2:]
        period = np.random.randint(2, height)
        stripe = int(np.clip(period * self.ratio + 0.5, 1, period - 1))
        rows, columns = (
            _stripes(size, period, stripe, np.random.randint(period))
            for size in (height, width)
        )
        keep = torch.from_numpy(rows[:, None] | columns[None])
        return images * keep.to(images)


def _stripes(size: int, period: int, stripe: int, first: int) -> np.ndarray:
    """``[size]``: true inside a stripe; centre of a canvas 1.5 times as long.

    The stripes begin at ``first`` and there are as many as whole periods fit
    on the canvas: none before the first, and sometimes one less at the end.
    """
    canvas = int(1.5 * size)
    number, place = np.divmod(np.arange(canvas) - first, period)
    inside = (number >= 0) & (number < canvas // period) & (place < stripe)
    margin = (canvas - size) // 2
    return inside[margin : margin + size]
