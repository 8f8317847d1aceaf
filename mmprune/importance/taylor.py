"""Importance from the first-order change of the loss."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..groups import PruneGroup, unit_sums
from ..registry import TASK_UTILS
from ..statistics import Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class Taylor:
    r"""Squared first-order change of the loss when a unit's readers are 0.

    :math:`(\sum_{w \in \text{consumers}(i)} w \, \partial L/\partial w)^2`,
    with the gradient of the mean loss over the calibration data. Molchanov
    et al., "Importance Estimation for Neural Network Pruning", CVPR 2019;
    they sum over the producer's weights and average the squares of single
    batches.
    """

    needs: ClassVar[set[str]] = {'grad'}
    # All groups' scores are changes of one loss: divided by the mean of its
    # group, a group that nobody needs would look like any other.
    comparable: ClassVar[bool] = True

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` without any gradient."""
        # A slice with a fill is not multiplied by its unit (a logit), so
        # there the producers tell the change.
        readers = [s for s in group.consumers if s.fill == 0]
        if len(readers) < len(group.consumers):
            readers = []
        for parts in (readers, group.producers):
            changes = [
                unit_sums(
                    stats.tensors[s.tensor].float()
                    * stats.grad[s.tensor].float(),
                    s,
                    group.size,
                )
                for s in parts
                if s.tensor in stats.grad
            ]
            if changes:
                return sum(changes).square()
        return None

    def weights(self, name: str, stats: Statistics) -> Tensor:
        r"""Returns :math:`|w \, \partial L/\partial w|` of each weight."""
        return (stats.tensors[name] * stats.grad[name]).abs()
