"""Importance from what the loss of single steps says about a unit."""

from dataclasses import dataclass

from torch import Tensor

from ..checks import check_choice
from ..groups import PruneGroup
from ..registry import TASK_UTILS
from ..statistics import Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class KDGrad:
    r"""Mean over steps of the change of the loss without a unit.

    :math:`\frac1W \sum_t |\sum_{w \in i} w \, \partial L_t/\partial w|`. In a
    training the steps are the last W of it and the loss is the one that it
    steps with: of a ``mmprune.DistilledModel`` the distillation loss. Unlike
    :class:`Taylor`, which averages gradients first, steps of opposite sign
    do not cancel. Michel et al., "Are Sixteen Heads Really Better than One?",
    NeurIPS 2019, for heads; Molchanov et al., CVPR 2019.

    Args:
        reduce: ``abs_of_sum`` as above, over what reads the unit; or
            ``sum_of_abs``, the sum of the sizes of all products in its
            matrices.
    """

    reduce: str = 'abs_of_sum'

    def __post_init__(self) -> None:
        check_choice('reduce', self.reduce, ('abs_of_sum', 'sum_of_abs'))

    @property
    def needs(self) -> set[str]:
        """What it reads."""
        return {self.reduce}

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` without any gradient."""
        return stats.changes.get(group.name)
