"""Removes whole units: the file to read first."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..allocation import (
    Chunk,
    Keep,
    allocate,
    check_scope,
    check_sparsity,
    keep_after,
    meet_budget,
    merge_orders,
    removal_order,
)
from ..cost import CostTable
from ..groups import PruneGroup
from ..importance import Magnitude
from ..plan import PruningPlan
from ..registry import TASK_UTILS
from ..statistics import Statistics, calibrate
from ..surgery import kept_index

LossFn = Callable[[nn.Module, Any], Tensor]
Criterion = Callable[[PruneGroup, Statistics], Tensor | None]


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class StructuredPruner:
    """Chooses the units that go: score, decide, and nothing else.

    Args:
        sparsity: Fraction to remove, in ``[0, 1)``.
        importance: The criterion, or its config.
        target: What the fraction counts: ``units`` (of each granularity),
            ``params`` or ``macs`` of the whole model.
        scope: ``global`` (units of one granularity compete; scores are
            divided by the mean of their group, so that neither big groups
            nor big weights win by size) or ``layer``.
        round_to: Kept channels and neurons of a touched group are a multiple
            of this.
        min_keep: Channels and neurons that every group keeps; of other
            units one stays.
        protect: Regular expressions; groups whose name or tensors match stay
            dense.
        tolerance: How near ``params`` and ``macs`` have to come, as a
            fraction of the dense cost.
    """

    sparsity: float
    importance: Criterion | dict = field(default_factory=Magnitude)
    target: str = 'units'
    scope: str = 'global'
    round_to: int = 1
    min_keep: int = 1
    protect: Sequence[str] = ()
    tolerance: float = 0.005

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.target not in ('units', 'params', 'macs'):
            raise ValueError(
                "target must be 'units', 'params' or 'macs', found "
                f'{self.target!r}'
            )
        check_scope(self.scope)
        if isinstance(self.importance, dict):
            criterion = TASK_UTILS.build(self.importance)
            object.__setattr__(self, 'importance', criterion)

    def __call__(
        self,
        model: nn.Module,
        groups: Iterable[PruneGroup],
        batches: Iterable[Any] = (),
        loss_fn: LossFn | None = None,
        costs: CostTable | None = None,
        stats: Statistics | None = None,
        before: PruningPlan | None = None,
    ) -> PruningPlan:
        """Returns the plan; the model is left as it is.

        Args:
            model: The dense model.
            groups: What its adapters yield.
            batches: Calibration data, for criteria that need it.
            loss_fn: Loss of the model on a batch, for the same.
            costs: Prices of the weights, for ``params`` and ``macs``.
            stats: What a training gathered, in place of calibration.
            before: An earlier plan; what it removed goes first and never
                comes back.

        Raises:
            ValueError: If a pattern protects nothing, if nothing is left to
                prune, or if the fraction cannot be met.
        """
        groups = protect(groups, self.protect)
        open_groups = [g for g in groups if not g.dense]
        if stats is None:
            stats = calibrate(
                model, open_groups, self.importance.needs, batches, loss_fn
            )
        groups, scores = self.score(groups, stats)
        if before is not None:
            scores = _last(scores, before)
        if self.target == 'units':
            keep = self._keep_units(groups, scores)
        else:
            keep = self._keep_cost(groups, scores, costs)
        if before is not None:
            keep = _without(keep, before)
        pruned = tuple(g for g in groups if len(keep[g.name]) < g.size)
        return PruningPlan(
            groups=pruned,
            keep={g.name: keep[g.name] for g in pruned},
            provenance={
                **self.describe(stats),
                'unscored': self.unscored(open_groups, scores),
            },
        )

    def score(
        self, groups: list[PruneGroup], stats: Statistics
    ) -> tuple[list[PruneGroup], dict[str, Tensor]]:
        """Returns the groups that can lose units, and their scores."""
        scored, scores = [], {}
        for group in groups:
            score = None if group.dense else self.importance(group, stats)
            if score is None:
                continue
            score = score.detach().float().cpu()
            if self.scope == 'global':
                score = score / score.mean().clamp_min(1e-30)
            scored.append(group)
            scores[group.name] = score
        if not scored:
            name = type(self.importance).__name__
            raise ValueError(
                f'nothing can be pruned: no group is open for {name}; '
                'protect less or choose another criterion'
            )
        return scored, scores

    def unscored(
        self, groups: list[PruneGroup], scores: dict[str, Tensor]
    ) -> dict[str, str]:
        """Returns why open groups stay dense: the criterion has no score."""
        name = type(self.importance).__name__
        return {
            g.name: f'{name} has no score for it'
            for g in groups
            if g.name not in scores
        }

    def describe(self, stats: Statistics) -> dict:
        """Returns the options as plain data, for people to read."""
        options = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self)
        }
        return {
            **options,
            'protect': list(self.protect),
            'importance': repr(self.importance),
            'calibration_batches': stats.num_batches,
        }

    def _kinds(
        self, groups: list[PruneGroup], scores: dict[str, Tensor]
    ) -> list[tuple[dict[str, Tensor], dict[str, int]]]:
        """Units that compete, with the options that hold for them."""
        kinds: dict[Any, dict[str, Tensor]] = {}
        for group in groups:
            alone = group.name if self.scope == 'layer' else ''
            kind = kinds.setdefault((group.granularity, alone), {})
            kind[group.name] = scores[group.name]
        parts = []
        for (granularity, _), part in kinds.items():
            # Nobody wants a multiple of 8 heads.
            wide = granularity in ('channel', 'neuron')
            round_to = self.round_to if wide else 1
            min_keep = self.min_keep if wide else 1
            parts.append((part, dict(round_to=round_to, min_keep=min_keep)))
        return parts

    def _keep_units(
        self, groups: list[PruneGroup], scores: dict[str, Tensor]
    ) -> Keep:
        keep = {}
        for part, options in self._kinds(groups, scores):
            keep |= allocate(part, self.sparsity, **options)
        return keep

    def _keep_cost(
        self,
        groups: list[PruneGroup],
        scores: dict[str, Tensor],
        costs: CostTable | None,
    ) -> Keep:
        if costs is None or not costs.total(self.target):
            raise ValueError(
                f'target {self.target!r} needs the cost of the model; give '
                'an example to count it on'
            )
        order: list[Chunk] = merge_orders(
            [
                (part, removal_order(part, **options))
                for part, options in self._kinds(groups, scores)
            ]
        )
        if not self.sparsity:
            return keep_after(scores, [])

        def cost(keep: Keep) -> float:
            plan = PruningPlan(tuple(groups), keep)
            index = kept_index(plan, costs.shapes)
            return costs.total(self.target, index)

        dense = costs.total(self.target)
        return meet_budget(
            scores,
            order,
            cost,
            budget=(1 - self.sparsity) * dense,
            tolerance=self.tolerance * dense,
        )


def _last(scores: dict[str, Tensor], before: PruningPlan) -> dict[str, Tensor]:
    """The scores, with those of removed units below all others."""
    lowest = min(score.min().item() for score in scores.values())
    scores = {name: score.clone() for name, score in scores.items()}
    for group in before.groups:
        if group.name in scores:
            scores[group.name][before.removed(group)] = lowest - 1
    return scores


def _without(keep: Keep, before: PruningPlan) -> Keep:
    """The kept units that were kept before as well."""
    gone = {g.name: set(before.removed(g)) for g in before.groups}
    return {
        name: [i for i in units if i not in gone.get(name, ())]
        for name, units in keep.items()
    }


def protect(
    groups: Iterable[PruneGroup],
    patterns: Sequence[str],
    weights: Iterable[str] = (),
) -> list[PruneGroup]:
    """Returns the groups; protected ones carry the reason.

    Args:
        groups: All groups of the model.
        patterns: Regular expressions on names of groups and tensors.
        weights: Names of weights that a pattern may also mean, though no
            group has them.

    Raises:
        ValueError: If a pattern is no regular expression or matches nothing.
    """
    groups = list(groups)
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f'protect pattern {pattern!r} is no regular expression: '
                f'{error}'
            ) from error
        matched = [
            any(
                expression.search(text)
                for text in (g.name, *(s.tensor for s in g.slices))
            )
            for g in groups
        ]
        if not any(matched) and not any(map(expression.search, weights)):
            examples = ', '.join(g.name for g in groups[:3])
            raise ValueError(
                f'protect pattern {pattern!r} matches none of the '
                f'{len(groups)} groups; their names look like {examples}'
            )
        groups = [
            dataclasses.replace(g, dense=g.dense or f'protected by {pattern}')
            if hit
            else g
            for g, hit in zip(groups, matched, strict=True)
        ]
    return groups


def protect_frozen(
    groups: Iterable[PruneGroup], model: nn.Module
) -> list[PruneGroup]:
    """Returns the groups; those of frozen layers carry the reason.

    A layer that training freezes cannot recover from what it lost, so by
    default it keeps its units. Norm scales do not count: many configs freeze
    all of them.
    """
    frozen = {
        name
        for name, param in model.named_parameters()
        if param.ndim > 1 and not param.requires_grad
    }
    return [
        dataclasses.replace(g, dense='frozen in training')
        if not g.dense and frozen & {s.tensor for s in g.producers}
        else g
        for g in groups
    ]
