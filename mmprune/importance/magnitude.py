"""Importance from the size of the weights alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..groups import PruneGroup, unit_elements, unit_sums
from ..registry import TASK_UTILS
from ..statistics import Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class Magnitude:
    r"""Mean size of the weights that write and read a unit.

    For unit i with weights :math:`w_{s,i}` (n of them) in slice s of the
    group, :math:`(\frac1n \sum |w_{s,i}|^p)^{1/p}`, averaged over slices.
    Means instead of norms keep big units comparable with small ones. Only
    matrices and kernels count, unless a group has none. Li et al., "Pruning
    Filters for Efficient ConvNets", ICLR 2017 (p = 1, sums, producers only).

    Args:
        p: 1 for L1, 2 for L2.
    """

    p: int = 1
    needs: ClassVar[set[str]] = set()

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f'p must be 1 or 2, found {self.p}')

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor:
        """Returns the importance of each unit, ``[group.size]``."""
        kernels = [s for s in group.slices if stats.tensors[s.tensor].ndim > 1]
        scores = []
        for part in kernels or group.producers:
            weight = stats.tensors[part.tensor].float()
            sums = unit_sums(weight.abs() ** self.p, part, group.size)
            mean = sums / unit_elements(weight.shape, part)
            scores.append(mean ** (1 / self.p))
        return torch.stack(scores).mean(0)
