"""Importance from the size of the weights alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..groups import PruneGroup, Slice, matrices, unit_elements, unit_sums
from ..registry import TASK_UTILS
from ..statistics import Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class Magnitude:
    r"""Size of the weights that write and read a unit, or of one weight.

    For unit i with weights :math:`w_{s,i}` (n of them) in slice s of the
    group, :math:`(\frac1n \sum |w_{s,i}|^p)^{1/p}`, averaged over slices.
    Means instead of norms keep big units comparable with small ones. Only
    matrices and kernels count, unless a group has none. A single weight is
    worth :math:`|w|`. Li et al., "Pruning Filters for Efficient ConvNets",
    ICLR 2017 (p = 1, sums, producers only).

    Args:
        p: 1 for L1, 2 for L2.
        reduce: ``mean``, or ``sum`` for :math:`(\sum |w|^p)^{1/p}` over all
            slices together.
        sides: ``both``, or ``producers`` for what writes a unit alone.
    """

    p: int = 1
    reduce: str = 'mean'
    sides: str = 'both'
    needs: ClassVar[set[str]] = set()

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f'p must be 1 or 2, found {self.p}')
        if self.reduce not in ('mean', 'sum'):
            raise ValueError(
                f"reduce must be 'mean' or 'sum', found {self.reduce!r}"
            )

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` for sums without a matrix."""
        kernels = matrices(group, stats.tensors, self.sides)
        if self.reduce == 'sum':
            sums = [self._sums(part, group.size, stats) for part in kernels]
            return sum(sums) ** (1 / self.p) if sums else None
        scores = []
        for part in kernels or group.producers:
            weight = stats.tensors[part.tensor].float()
            sums = unit_sums(weight.abs() ** self.p, part, group.size)
            mean = sums / unit_elements(weight.shape, part)
            scores.append(mean ** (1 / self.p))
        return torch.stack(scores).mean(0)

    def _sums(self, part: Slice, size: int, stats: Statistics) -> Tensor:
        weight = stats.tensors[part.tensor].double()
        return unit_sums(weight.abs() ** self.p, part, size)

    def weights(self, name: str, stats: Statistics) -> Tensor:
        """Returns the importance of each weight of a tensor, in its shape."""
        return stats.tensors[name].abs()
