"""Importance in which every layer of a group has the same say."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..groups import PruneGroup, matrices
from ..registry import TASK_UTILS
from ..statistics import Statistics

_L2 = dict(type='mmprune.Magnitude', p=2)


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class GroupNormalized:
    r"""Mean over a group's matrices of a criterion, each by its own mean.

    :math:`\frac1S \sum_s I_{s,i}^p / \frac1n \sum_j I_{s,j}^p`, where
    :math:`I_{s,i}` is what the criterion says of unit i from slice s alone.
    Squares of norms are the unit's share of a layer's energy, which adds up
    where norms do not: what all layers of a residual stream agree on keeps
    its rank among narrow groups. A layer whose weights are ten times as large
    decides no more than the others, and the units of different groups compare.
    Grouped importance: Fang et al., "DepGraph: Towards Any Structural
    Pruning", CVPR 2023. Single weights have no group.

    Args:
        criterion: Scores the units from a slice, or the config of one that
            does; by default their L2 norm.
        power: The p above.
        sides: ``both``, or ``producers`` for what writes a unit alone.
    """

    criterion: Any = field(default_factory=lambda: dict(_L2))
    power: float = 2.0
    sides: str = 'both'
    # Scores of different groups compare as they are.
    comparable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.criterion, dict):
            built = TASK_UTILS.build(self.criterion)
            object.__setattr__(self, 'criterion', built)

    @property
    def needs(self) -> set[str]:
        """What the criterion reads."""
        return self.criterion.needs

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` where there is no score."""
        scores = [
            self.criterion(replace(group, producers=(s,), consumers=()), stats)
            for s in matrices(group, stats.tensors, self.sides)
        ]
        powers = [s.double() ** self.power for s in scores if s is not None]
        found = [s / s.mean().clamp_min(1e-300) for s in powers]
        return torch.stack(found).mean(0) if found else None
