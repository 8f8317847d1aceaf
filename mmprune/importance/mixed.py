"""Importance from the size of the weights and from the loss together."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checks import check_choice
from ..groups import PruneGroup
from ..registry import TASK_UTILS
from ..statistics import Scores, Statistics, scores_of

_L2 = dict(type='mmprune.Magnitude', p=2, reduce='sum')
_CHANGE = dict(type='mmprune.KDGrad')


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class Mixed:
    r"""A weighted sum of two criteria, each brought to one scale before.

    :math:`\lambda_{mag} N(m) + \lambda_{grad} N(g)`. Norms of weights lie
    between 1 and 20, changes of a loss between 1e-6 and 1e-3: without
    :math:`N` the larger one would decide alone. :math:`N` is taken over all
    units of a granularity, so layers still compare. With a weight of 0 the
    order is that of the other criterion.

    Args:
        lambda_mag: Weight of the size.
        lambda_grad: Weight of the change of the loss.
        magnitude: The criterion of size, by default the L2 norm of all
            matrices of a unit.
        gradient: The criterion of change, by default :class:`KDGrad`.
        normalize: ``mean`` divides by the mean, ``rank`` takes the place in
            the order from 0 to 1, ``range`` goes from 0 at the smallest to 1
            at the largest.
    """

    lambda_mag: float = 0.5
    lambda_grad: float = 0.5
    magnitude: Any = field(default_factory=lambda: dict(_L2))
    gradient: Any = field(default_factory=lambda: dict(_CHANGE))
    normalize: str = 'mean'

    def __post_init__(self) -> None:
        check_choice('normalize', self.normalize, ('mean', 'rank', 'range'))
        weights = (self.lambda_mag, self.lambda_grad)
        if min(weights) < 0 or not sum(weights):
            raise ValueError(
                'lambda_mag and lambda_grad are not negative and not both 0, '
                f'found {weights[0]:g} and {weights[1]:g}'
            )
        for name in ('magnitude', 'gradient'):
            if isinstance(getattr(self, name), dict):
                built = TASK_UTILS.build(getattr(self, name))
                object.__setattr__(self, name, built)

    @property
    def needs(self) -> set[str]:
        """What it reads; a criterion of weight 0 needs nothing."""
        return set().union(*(c.needs for _, c in self._terms))

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]`` of a group that competes alone."""
        return self.together([group], stats, {})[group.name]

    def together(
        self,
        groups: Sequence[PruneGroup],
        stats: Statistics,
        pruned: Mapping[str, Sequence[int]],
    ) -> Scores:
        """Returns the scores of groups that compete, by name.

        Args:
            groups: The groups.
            stats: What both criteria read.
            pruned: Group name -> units that are masked already and have no
                part in the scale.

        Returns:
            Group name -> ``[size]``, ``None`` where a criterion has none.
        """
        kinds = defaultdict(list)
        for group in groups:
            kinds[group.granularity].append(group)
        found: Scores = {group.name: None for group in groups}
        for part in kinds.values():
            found |= self._of_one_kind(part, stats, pruned)
        return found

    @property
    def _terms(self) -> list[tuple[float, Any]]:
        terms = [
            (self.lambda_mag, self.magnitude),
            (self.lambda_grad, self.gradient),
        ]
        return [(weight, criterion) for weight, criterion in terms if weight]

    def _of_one_kind(
        self,
        groups: Sequence[PruneGroup],
        stats: Statistics,
        pruned: Mapping[str, Sequence[int]],
    ) -> Scores:
        rows, alive = {}, []
        for group in groups:
            scores = [criterion(group, stats) for _, criterion in self._terms]
            if all(score is not None for score in scores):
                rows[group.name] = [s.double().cpu() for s in scores]
                alive.append(torch.ones(group.size, dtype=torch.bool))
                alive[-1][list(pruned.get(group.name, ()))] = False
        if not rows:
            return {}
        sums = [
            weight * self._scaled(torch.cat(column), torch.cat(alive))
            for (weight, _), column in zip(
                self._terms, zip(*rows.values(), strict=True), strict=True
            )
        ]
        sizes = [len(row[0]) for row in rows.values()]
        return dict(zip(rows, sum(sums).split(sizes), strict=True))

    def _scaled(self, scores: Tensor, alive: Tensor) -> Tensor:
        if self.normalize == 'rank':
            places = scores.argsort(stable=True).argsort()
            return places / max(len(scores) - 1, 1)
        if self.normalize == 'range':
            scores = scores - scores[alive].min()
            return scores / scores[alive].max().clamp_min(1e-30)
        return scores / scores[alive].mean().clamp_min(1e-30)


@scores_of.register
def _(
    criterion: Mixed,
    groups: Sequence[PruneGroup],
    stats: Statistics,
    pruned: Mapping[str, Sequence[int]],
) -> Scores:
    return criterion.together(groups, stats, pruned)
