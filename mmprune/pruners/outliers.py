"""A sparsity for each block, by how many of its weights stand out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..importance.wanda import Wanda
from ..registry import TASK_UTILS
from ..statistics import Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class OutlierRatios:
    """Blocks with more outliers lose fewer weights.

    Outliers are weights whose score is more than ``threshold`` times the
    mean of their block; Yin et al., "Outlier Weighed Layerwise Sparsity
    (OWL)", ICML 2024. Different from their code: all blocks together lose
    exactly the fraction that was asked for also where they differ in size.

    Args:
        threshold: How many times the mean; the paper has 5 and 7.
        limit: How far the sparsity of a block is at most from the mean.
    """

    threshold: float = 5.0
    limit: float = 0.08
    importance: Any = field(default_factory=Wanda)
    needs: ClassVar[set[str]] = {'inputs'}

    def __post_init__(self) -> None:
        if not self.threshold > 0 or not 0 <= self.limit < 0.5:
            raise ValueError(
                'threshold must be positive and limit in [0, 0.5), found '
                f'{self.threshold} and {self.limit}'
            )

    def outliers(self, names: Iterable[str], stats: Statistics) -> float:
        """Returns the fraction of outliers among the weights of a block."""
        scores: list[Tensor] = [
            self.importance.weights(name, stats).float() for name in names
        ]
        count = sum(score.numel() for score in scores)
        mean = sum(score.double().sum() for score in scores) / count
        above = sum(
            torch.count_nonzero(score > self.threshold * mean)
            for score in scores
        )
        return float(above) / count

    def sparsities(
        self, outliers: Sequence[float], sizes: Sequence[int], sparsity: float
    ) -> list[float]:
        """Returns the sparsity of each block.

        Args:
            outliers: Fraction of outliers per block.
            sizes: Weights per block.
            sparsity: Of all blocks together.
        """
        return spread_sparsity(outliers, sizes, sparsity, self.limit)


def spread_sparsity(
    worth: Sequence[float],
    sizes: Sequence[int],
    sparsity: float,
    limit: float,
) -> list[float]:
    """Returns a sparsity for each part, lower where it is worth more.

    Linear in the worth; the mean, weighted by size, is the sparsity, and the
    most and the least worthy part differ by twice the limit.

    Args:
        worth: Of each part, in any unit.
        sizes: Weights of each part.
        sparsity: Of all parts together.
        limit: Half of the largest difference.

    Raises:
        ValueError: If a part would lose less than nothing or all.
    """
    span = max(worth) - min(worth)
    scaled = [2 * limit * (w - min(worth)) / (span or 1.0) for w in worth]
    total = sum(sizes)
    mean = sum(s * n for s, n in zip(scaled, sizes, strict=True)) / total
    found = [sparsity + mean - s for s in scaled]
    if min(found) < 0 or max(found) >= 1:
        raise ValueError(
            f'a sparsity of {sparsity:g} that differs by up to {limit:g} '
            f'would be {min(found):.3f} in one part and {max(found):.3f} in '
            'another; lower the limit'
        )
    return found
