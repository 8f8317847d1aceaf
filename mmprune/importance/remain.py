"""Importance from how much of a unit a pruning of single weights leaves."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..groups import PruneGroup, matrices, unit_sums
from ..registry import TASK_UTILS
from ..statistics import Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class Remain:
    """Number of a unit's weights that a global pruning of single weights by
    magnitude, to the same sparsity, would keep.

    Chen et al., "Coarsening the Granularity", ICML 2022.

    Args:
        sides: ``producers`` for what writes a unit, or ``both``.
    """

    sides: str = 'producers'
    needs: ClassVar[set[str]] = {'survivors'}

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` without any matrix."""
        sums = [
            unit_sums(stats.survivors[s.tensor].double(), s, group.size)
            for s in matrices(group, stats.survivors, self.sides)
        ]
        return sum(sums) if sums else None
