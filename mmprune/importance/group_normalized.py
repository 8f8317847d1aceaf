"""Importance of all that goes with a unit, by the mean of its group."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..groups import PruneGroup, Slice, unit_sums
from ..registry import TASK_UTILS
from ..statistics import Statistics

_L1 = dict(type='mmprune.Magnitude', p=1)


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class GroupNormalized:
    r"""Sum over all weights that go with a unit, by the mean of its group.

    :math:`I_i = \sum_{w \in i} s(w)^p`, divided by the mean of :math:`I`
    over the group, where s is what the criterion says of a single weight of
    the matrices that write and read the unit, and of the scales of its norms,
    not of biases. Units of different groups compare, as a layer whose weights
    are ten times as large decides no more than the others. With the size of
    the weights and p = 2 it is the group norm of Fang et al., "DepGraph:
    Towards Any Structural Pruning", CVPR 2023. Single weights have no group.

    Args:
        criterion: Scores single weights, or the config of one that does; by
            default their size.
        power: The p above.
        norms: Whether the scales of norms count.
    """

    criterion: Any = field(default_factory=lambda: dict(_L1))
    power: float = 2.0
    norms: bool = True
    # Scores of different groups compare as they are.
    comparable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.criterion, dict):
            built = TASK_UTILS.build(self.criterion)
            object.__setattr__(self, 'criterion', built)
        if not hasattr(self.criterion, 'weights'):
            raise ValueError(
                f'{type(self.criterion).__name__} does not score single '
                'weights; give a criterion that does'
            )

    @property
    def needs(self) -> set[str]:
        """What the criterion reads."""
        return self.criterion.needs

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` without weights."""
        sums = [
            unit_sums(
                self.criterion.weights(part.tensor, stats).double()
                ** self.power,
                part,
                group.size,
            )
            for part in group.slices
            if self._counts(part, stats)
        ]
        if not sums:
            return None
        total = sum(sums)
        return total / total.mean().clamp_min(1e-300)

    def _counts(self, part: Slice, stats: Statistics) -> bool:
        """Whether a slice is one of a matrix, or of the scale of a norm."""
        name = part.tensor
        read = [getattr(stats, need) for need in self.needs]
        # A layer that the loss does not reach has no gradient.
        if any(name not in found for found in (stats.tensors, *read)):
            return False
        scale = self.norms and name.rpartition('.')[2] == 'weight'
        return stats.tensors[name].ndim > 1 or scale
