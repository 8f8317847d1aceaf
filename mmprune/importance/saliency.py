"""Importance from the first-order change of each single weight."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..groups import PruneGroup, matrices, unit_sums
from ..registry import TASK_UTILS
from ..statistics import Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class Saliency:
    r"""Sum of :math:`|w \, \partial L/\partial w|` over a unit's weights.

    Unlike :class:`Taylor` changes of opposite sign do not cancel. With the
    gradient of the mean loss over the calibration data. Mozer & Smolensky,
    "Skeletonization", NeurIPS 1988; Lee et al., "SNIP", ICLR 2019, for
    single weights.

    Args:
        sides: ``producers`` for what writes a unit, or ``both``.
    """

    sides: str = 'producers'
    needs: ClassVar[set[str]] = {'grad'}

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` without any gradient."""
        sums = [
            unit_sums(self.weights(s.tensor, stats).double(), s, group.size)
            for s in matrices(group, stats.grad, self.sides)
        ]
        return sum(sums) if sums else None

    def weights(self, name: str, stats: Statistics) -> Tensor:
        """Returns the importance of each weight of a tensor, in its shape."""
        return (stats.tensors[name] * stats.grad[name]).abs()
