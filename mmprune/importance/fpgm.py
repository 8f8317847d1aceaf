"""Importance from how far a unit lies from the others of its layer."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..groups import PruneGroup, Slice, matrices
from ..registry import TASK_UTILS
from ..statistics import Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class FPGM:
    r"""Sum of a unit's distances to all units of its group.

    :math:`\sum_j \|w_i - w_j\|_2` over the weights that write the units: one
    near the geometric median of all is what the others can stand in for,
    however large it is. He et al., "Filter Pruning via Geometric Median for
    Deep Convolutional Neural Networks Acceleration", CVPR 2019. Where several
    matrices write a unit, its vector is all their weights. A single weight
    has no such distance.

    Args:
        sides: ``producers``, or ``both`` for what reads a unit as well.
    """

    sides: str = 'producers'
    needs: ClassVar[set[str]] = set()

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` without any matrix."""
        parts = matrices(group, stats.tensors, self.sides)
        if not parts:
            return None
        vectors = torch.cat(
            [_vectors(stats.tensors[p.tensor], p, group.size) for p in parts],
            dim=1,
        )
        # By differences: those by products lose the digits of near vectors.
        exact = 'donot_use_mm_for_euclid_dist'
        return torch.cdist(vectors, vectors, compute_mode=exact).sum(1)


def _vectors(weight: Tensor, part: Slice, size: int) -> Tensor:
    """The weights of each unit, ``[size, n]``."""
    index = part.index(range(size), size).to(weight.device)
    rows = weight.float().movedim(part.dim, 0)[index]
    rows = rows.reshape(part.copies, size, part.block, -1)
    return rows.movedim(1, 0).reshape(size, -1)
