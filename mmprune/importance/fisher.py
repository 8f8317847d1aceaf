"""Importance from the second-order change of the loss."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..groups import PruneGroup, matrices, unit_sums
from ..registry import TASK_UTILS
from ..statistics import FROM_GRADIENTS, Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class Fisher:
    r"""Sum of :math:`F_w w^2` over a unit's weights, or of one weight.

    Optimal brain damage (LeCun et al., NIPS 1989) with the diagonal of the
    empirical Fisher matrix in place of the Hessian's (Theis et al., "Faster
    gaze prediction with dense networks and Fisher pruning", 2018):
    :math:`F_w = \frac1B \sum_b (\partial L_b/\partial w)^2`, where
    :math:`L_b` is the mean loss of calibration batch b. Batches of one
    sample give the Fisher matrix itself; larger ones average before they
    square. The factor 1/2 of the expansion is left out.

    Args:
        sides: ``both``, all weights that go with a unit, or ``producers``
            for what writes it alone.
    """

    sides: str = 'both'
    needs: ClassVar[set[str]] = {'squared_grad'}

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` without any gradient."""
        sums = [
            unit_sums(self.weights(s.tensor, stats), s, group.size)
            for s in matrices(group, stats.squared_grad, self.sides)
        ]
        return sum(sums) if sums else None

    def weights(self, name: str, stats: Statistics) -> Tensor:
        """Returns the importance of each weight of a tensor, in its shape."""
        squares = stats.tensors[name].double().square()
        return squares * stats.squared_grad[name].double()


FROM_GRADIENTS['squared_grad'] = (
    'squared_grad',
    lambda groups, tensors, grads: {n: g.square() for n, g in grads.items()},
)
