"""Removes whole units: the file to read first."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ..allocation import (
    Keep,
    allocate,
    fewest,
    keep_after,
    meet_budget,
    merge_orders,
    removal_order,
    remove_lowest,
)
from ..calibration import LossFn, calibrate, filled_units, surviving_weights
from ..checks import check_choice, check_sparsity
from ..cost_table import CostTable, kept_cost
from ..groups import PruneGroup
from ..importance.magnitude import Magnitude
from ..plan import PruningPlan
from ..registry import TASK_UTILS
from ..statistics import Statistics, scores_of
from .isomorphism import structure
from .nested import kept_before, removed_first, removed_units
from .protection import keep_other_kinds, protect

# Nobody wants a multiple of 8 heads.
_SCOPES = ('global', 'layer', 'isomorphic', 'weights')
_WIDE = ('channel', 'neuron')


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class StructuredPruner:
    """Chooses the units to remove: score, decide, and nothing else.

    Args:
        sparsity: Fraction to remove, in ``[0, 1)``; or one for each
            granularity, of which the others then stay dense.
        importance: The criterion, or its config.
        target: What the fraction counts: ``units`` (of each granularity),
            ``params`` or ``macs`` of the whole model.
        scope: ``global`` (units of one granularity compete), ``layer`` (each
            group loses the same fraction), ``isomorphic`` (only units of
            groups with the same structure compete; each structure loses the
            same fraction), or ``weights`` (each group keeps
            as many units as the weights would fill that a global pruning of
            single weights leaves it; Refill of Chen et al., "Coarsening the
            Granularity", ICML 2022).
        round_to: Kept channels and neurons of a touched group are a multiple
            of this.
        round_from: Of groups with at least so many units; narrower ones keep
            any number.
        min_keep: Channels and neurons that every group keeps, below 1 as a
            fraction, of other units one; or a number for each granularity.
            Whole blocks (``layer``) are groups of one unit and may all go.
        protect: Regular expressions; groups whose name or tensors match stay
            dense.
        tolerance: How near ``params`` and ``macs`` have to come, as a
            fraction of the dense cost.
        normalize: What the scores of a group are divided by where groups
            compete: their ``mean``, so that neither big groups nor big
            weights win by size, their ``norm``, or nothing (``None``). Scores
            of a criterion that is ``comparable`` are left as they are.
        fill_back: Fraction of the units that would be removed which stays.
        together: Whether units of all granularities compete in one ranking,
            with one sparsity; made for scores that compare, as those of
            ``mmprune.Mixed``.
        strict: Whether a group of which ``min_keep`` does not allow to
            remove so many is an error; if not, it keeps just that many.
    """

    sparsity: float | Mapping[str, float]
    importance: Any = field(default_factory=Magnitude)
    target: str = 'units'
    scope: str = 'global'
    round_to: int = 1
    round_from: int = 0
    min_keep: float | Mapping[str, float] = 1
    protect: Sequence[str] = ()
    tolerance: float = 0.005
    normalize: str | None = 'mean'
    fill_back: float = 0.0
    together: bool = False
    strict: bool = True

    def __post_init__(self) -> None:
        by_kind = isinstance(self.sparsity, Mapping)
        for sparsity in self.sparsity.values() if by_kind else [self.sparsity]:
            check_sparsity(sparsity)
        check_choice('target', self.target, ('units', 'params', 'macs'))
        check_choice('scope', self.scope, _SCOPES)
        check_choice('normalize', self.normalize, ('mean', 'norm', None))
        if not 0 <= self.fill_back <= 1:
            raise ValueError(
                f'fill_back is a fraction in [0, 1], found {self.fill_back!r}'
            )
        if self.target != 'units' and by_kind:
            raise ValueError(
                f'target {self.target!r} is met by all units together; give '
                'one sparsity, not one for each granularity'
            )
        alone = (self.round_to, self.min_keep) == (1, 1)
        if self.together and (by_kind or not alone):
            raise ValueError(
                'together ranks all units in one list: give one sparsity, and '
                'leave round_to and min_keep at 1'
            )
        if isinstance(self.importance, dict):
            criterion = TASK_UTILS.build(self.importance)
            object.__setattr__(self, 'importance', criterion)
        if not callable(self.importance):
            raise ValueError(
                f'{type(self.importance).__name__} scores single weights, not '
                'units; choose another criterion for them, such as Wanda'
            )

    def __call__(
        self,
        model: nn.Module,
        groups: Iterable[PruneGroup],
        batches: Iterable[Any] = (),
        loss_fn: LossFn | None = None,
        costs: CostTable | None = None,
        stats: Statistics | None = None,
        before: PruningPlan | None = None,
        restart: Statistics | None = None,
    ) -> PruningPlan:
        """Returns the plan; the model is left as it is.

        Args:
            model: The dense model.
            groups: What its adapters yield.
            batches: Calibration data, for criteria that need it.
            loss_fn: Loss of the model on a batch, for the same.
            costs: Prices of the weights, for ``params`` and ``macs``.
            stats: What a training gathered, in place of calibration.
            before: An earlier plan; what it removed is removed first and
                never comes back.
            restart: Statistics of the weights that removed units would
                restart from: they compete with those instead.

        Raises:
            ValueError: If a pattern protects nothing, if nothing is left to
                prune, or if the fraction cannot be met.
        """
        groups = self.targets(groups)
        open_groups = [g for g in groups if not g.dense]
        if stats is None:
            stats = self.calibrate(model, open_groups, batches, loss_fn)
        pruned = removed_units(before)
        groups, scores = self.score(groups, stats, pruned)
        if before is not None:
            first = restart and self.score(groups, restart)[1]
            scores = removed_first(scores, before, first)
        bound = before if restart is None else None
        if self.target == 'units':
            keep = self._keep_units(groups, scores, stats, bound)
        else:
            keep = self._keep_cost(groups, scores, stats, costs)
        if bound is not None:
            keep = kept_before(keep, bound)
        pruned = tuple(g for g in groups if len(keep[g.name]) < g.size)
        return PruningPlan(
            groups=pruned,
            keep={g.name: keep[g.name] for g in pruned},
            provenance={
                **self._options(),
                'calibration_batches': stats.num_batches,
                'unscored': {
                    g.name: f'{type(self.importance).__name__} has no score '
                    'for it'
                    for g in open_groups
                    if g.name not in scores
                },
            },
        )

    def choose(
        self,
        model: nn.Module,
        pruned: Mapping[str, Tensor],
        stats: Statistics,
        groups: Sequence[PruneGroup],
        restart: Statistics | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns what is pruned after one more event, and how it came.

        Args:
            model: The model in training.
            pruned: Group name -> units that are pruned so far ``[size]``.
            stats: What the criterion reads.
            groups: Its groups.
            restart: As in :meth:`__call__`.
        """
        before = PruningPlan.of_masks(groups, pruned)
        plan = self(model, groups, stats=stats, before=before, restart=restart)
        return plan.masks(groups), dict(plan.provenance)

    def check(self, model: nn.Module, groups: Sequence[PruneGroup]) -> None:
        """Raises ``ValueError`` if the sparsity cannot be reached."""
        pruner = self
        if self.importance.needs:
            # How much can be pruned depends on sizes only, not on scores.
            pruner = dataclasses.replace(self, importance=Magnitude())
        pruner(model, groups)

    def targets(self, groups: Iterable[PruneGroup]) -> list[PruneGroup]:
        """Returns the groups; those that are no target say why.

        Raises:
            ValueError: If a pattern matches nothing, or a granularity that
                has a sparsity of its own has no group to prune.
        """
        groups = protect(groups, self.protect)
        if isinstance(self.sparsity, Mapping):
            groups = keep_other_kinds(groups, self.sparsity)
        return groups

    def sparsity_of(self, granularity: str) -> float:
        """Returns the fraction to remove of a kind of unit."""
        if isinstance(self.sparsity, Mapping):
            return self.sparsity[granularity]
        return self.sparsity

    def calibrate(
        self,
        model: nn.Module,
        groups: Sequence[PruneGroup],
        batches: Iterable[Any] = (),
        loss_fn: LossFn | None = None,
    ) -> Statistics:
        """Returns the statistics that the criterion needs."""
        sparsity = self.sparsity_of(groups[0].granularity) if groups else 0.0
        return calibrate(
            model,
            groups,
            self.importance.needs,
            batches,
            loss_fn,
            sparsity=sparsity,
        )

    def score(
        self,
        groups: list[PruneGroup],
        stats: Statistics,
        pruned: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> tuple[list[PruneGroup], dict[str, Tensor]]:
        """Returns the groups that can lose units, and their scores."""
        groups = [g for g in groups if not g.dense]
        found = scores_of(self.importance, groups, stats, pruned)
        scored = [g for g in groups if found[g.name] is not None]
        scores = {
            g.name: self._normalized(found[g.name].detach().cpu())
            for g in scored
        }
        if not scored:
            name = type(self.importance).__name__
            raise ValueError(
                f'nothing can be pruned: no group is open for {name}; '
                'protect less or choose another criterion'
            )
        return scored, scores

    def _normalized(self, score: Tensor) -> Tensor:
        if not score.is_floating_point():
            score = score.float()
        alone = self.scope == 'layer' or len(score) == 1
        alone = alone or getattr(self.importance, 'comparable', False)
        if alone or self.normalize is None:
            return score.clone()
        size = score.mean() if self.normalize == 'mean' else score.norm()
        return score / size.clamp_min(1e-30)

    def _options(self) -> dict:
        """The options as plain data, for people to read."""
        plain = {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in vars(self).items()
        }
        plain['protect'] = list(self.protect)
        plain['importance'] = repr(self.importance)
        return plain

    def _kinds(
        self, groups: list[PruneGroup], stats: Statistics
    ) -> list[tuple[list[PruneGroup], dict[str, int]]]:
        """Groups that compete, with the options that hold for them."""
        kinds: dict[Any, list[PruneGroup]] = {}
        for group in groups:
            # A block is a layer of its own: blocks always compete.
            alone: Any = ''
            if self.scope == 'layer' and group.granularity != 'layer':
                alone = group.name
            elif self.scope == 'isomorphic':
                alone = structure(group, stats.kinds)
            kind = '' if self.together else group.granularity
            kinds.setdefault((kind, alone), []).append(group)
        parts = []
        for (granularity, _), part in kinds.items():
            wide = granularity in _WIDE
            if isinstance(self.min_keep, Mapping):
                min_keep = self.min_keep.get(granularity, 1)
            else:
                min_keep = self.min_keep if wide else 1
            if granularity == 'layer':
                min_keep = 0
            round_to = self.round_to if wide else 1
            options = dict(round_to=round_to, min_keep=min_keep)
            parts.append((part, dict(options, round_from=self.round_from)))
        return parts

    def _keep_units(
        self,
        groups: list[PruneGroup],
        scores: dict[str, Tensor],
        stats: Statistics,
        before: PruningPlan | None,
    ) -> Keep:
        keep = {}
        for part, options in self._kinds(groups, stats):
            sparsity = self.sparsity_of(part[0].granularity)
            ranked = {g.name: scores[g.name] for g in part}
            if self.scope != 'weights':
                keep |= allocate(
                    ranked,
                    sparsity,
                    fill_back=self.fill_back,
                    strict=self.strict,
                    **options,
                )
                continue
            filled = self._filled(
                part, sparsity, stats, before, options['min_keep']
            )
            for name, count in filled.items():
                score = ranked[name]
                removed = len(score) - count
                keep |= remove_lowest({name: score}, removed, **options)
        return keep

    def _filled(
        self,
        groups: list[PruneGroup],
        sparsity: float,
        stats: Statistics,
        before: PruningPlan | None,
        min_keep: float,
    ) -> dict[str, int]:
        """Units that the surviving weights of the writing matrices fill."""
        survivors = surviving_weights(stats.tensors, groups, sparsity)
        filled = {}
        for group in groups:
            whole = filled_units(group, survivors)
            whole += (group.size - whole) * self.fill_back
            most = group.size
            if before is not None and group.name in before.keep:
                most = len(before.keep[group.name])
            # 28.999999999999996 units are 29.
            least = fewest(min_keep, group.size)
            filled[group.name] = max(least, min(int(whole + 1e-9), most))
        return filled

    def _keep_cost(
        self,
        groups: list[PruneGroup],
        scores: dict[str, Tensor],
        stats: Statistics,
        costs: CostTable | None,
    ) -> Keep:
        if costs is None or not costs.total(self.target):
            raise ValueError(
                f'target {self.target!r} needs the cost of the model; give '
                'an example to count it on'
            )
        parts = []
        for part, options in self._kinds(groups, stats):
            ranked = {g.name: scores[g.name] for g in part}
            parts.append((ranked, removal_order(ranked, **options)))
        if not self.sparsity:
            return keep_after(scores, [])

        dense = costs.total(self.target)
        return meet_budget(
            scores,
            merge_orders(parts),
            kept_cost(costs, self.target, groups),
            budget=(1 - self.sparsity) * dense,
            tolerance=self.tolerance * dense,
        )
