"""Importance relative to what is left of a layer."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..groups import PruneGroup, matrices, unit_sums
from ..registry import TASK_UTILS
from ..statistics import Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class LAMP:
    r"""The square of a weight by the sum of those that are not smaller.

    :math:`w_i^2 / \sum_{j \ge i} w_j^2` with the weights of one tensor in
    the order of their size, ties in that of their position. Compared over all
    layers it says how much each may lose; within a layer it is the order of
    the magnitude. Lee et al., "Layer-adaptive Sparsity for the Magnitude-based
    Pruning", ICLR 2021. The same of the units of a group, with the summed
    squares of their matrices, extends it to units.

    Args:
        sides: ``both``, or ``producers`` for what writes a unit alone.
    """

    sides: str = 'both'
    needs: ClassVar[set[str]] = set()
    # Scores of different groups compare as they are.
    comparable: ClassVar[bool] = True

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` without any matrix."""
        sums = [
            unit_sums(stats.tensors[s.tensor].double().square(), s, group.size)
            for s in matrices(group, stats.tensors, self.sides)
        ]
        return _of_the_rest(sum(sums)) if sums else None

    def weights(self, name: str, stats: Statistics) -> Tensor:
        """Returns the importance of each weight of a tensor, in its shape."""
        weight = stats.tensors[name]
        return _of_the_rest(weight.double().square().flatten()).view_as(weight)


def _of_the_rest(squares: Tensor) -> Tensor:
    ordered, order = squares.sort(stable=True)
    rest = ordered.flip(0).cumsum(0).flip(0)
    parts = ordered / rest.clamp_min(torch.finfo(rest.dtype).tiny)
    return torch.empty_like(parts).scatter(0, order, parts)
