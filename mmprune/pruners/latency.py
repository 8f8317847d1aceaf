"""Meets a latency: how much has to go is found by measuring."""

import copy
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..calibration import LossFn
from ..cost import time_in_turns
from ..cost_table import CostTable
from ..groups import PruneGroup
from ..plan import PruningPlan
from ..surgery import apply_plan
from .layer_times import LayerTimes
from .structured import StructuredPruner

# How near a measured latency has to come to the asked one, as a fraction of
# the dense model's; the search ends earlier at this fraction of the asked one.
NEAR = 0.03
# How near a prediction has to come before it is measured.
_GUESS = 0.005
_ROUNDS, _GUESSES = 5, 8
# Milliseconds of a measurement, and runs, that are enough of short models.
_LONG, _MOST = 4000, 100


def default_table() -> Path:
    """Returns where layer times are kept: ``mmprune/layer_times.json`` in
    ``$XDG_CACHE_HOME``, by default ``~/.cache``."""
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(cache) / 'mmprune' / 'layer_times.json'


@dataclass(frozen=True)
class LatencyPruner:
    """Removes units until a forward takes a fraction of its time less.

    Which units go first the pruner says; how many multiply-adds that are is
    searched. A candidate's time is predicted: the sum of its layers, each
    measured once with the very sizes that it has there, plus what the dense
    model takes beside its layers. The candidate is then measured, in turns
    with the dense model; if it missed, the prediction is corrected by what
    was seen, and the search goes on.

    Args:
        pruner: Its ``sparsity`` is the fraction of the latency to remove.
        forward: Runs a model once; that is what is timed.
        table: File of the layer times.
        runs: Timed runs of each model, at least; short ones run more often.
        progress: Called with what begins.
    """

    pruner: StructuredPruner
    forward: Callable[[nn.Module], Any]
    table: str | Path
    runs: int = 5
    progress: Callable[[str], None] = lambda _: None

    def __call__(
        self,
        model: nn.Module,
        groups: Iterable[PruneGroup],
        batches: Iterable[Any] = (),
        loss_fn: LossFn | None = None,
        costs: CostTable | None = None,
    ) -> PruningPlan:
        """Returns the plan; its provenance says what was asked, predicted
        and measured. The model is left as it is.

        Args:
            model: The dense model, in eval mode.
            groups: What its adapters yield.
            batches: Calibration data, for criteria that need it.
            loss_fn: Loss of the model on a batch, for the same.
            costs: Prices of the weights.

        Raises:
            ValueError: If the latency cannot be met.
        """
        groups = list(groups)
        targets = [g for g in self.pruner.targets(groups) if not g.dense]
        stats = self.pruner.calibrate(model, targets, batches, loss_fn)

        def plan_of(macs: float) -> PruningPlan:
            pruner = replace(
                self.pruner, sparsity=macs, target='macs', tolerance=0.02
            )
            return pruner(model, groups, costs=costs, stats=stats)

        return _Search(self, model, groups, plan_of).plan()


class _Search:
    """One search. Times are in milliseconds."""

    def __init__(
        self,
        asked: LatencyPruner,
        model: nn.Module,
        groups: Sequence[PruneGroup],
        plan_of: Callable[[float], PruningPlan],
    ) -> None:
        self.asked, self.model, self.groups = asked, model, groups
        self.plan_of, self.left = plan_of, 1 - asked.pruner.sparsity
        self.times = LayerTimes(asked.table)
        asked.progress('timing the layers of the dense model')
        self.layers = self.times.total(model, asked.forward, groups)
        self.dense, _ = self._share(model)
        self.rest = max(self.dense - self.layers, 0.0)
        # By how much more than predicted was left, in each round.
        self.missed: list[float] = []

    def plan(self) -> PruningPlan:
        """Returns the first plan whose measured latency is near enough."""
        if not self.asked.pruner.sparsity:
            return self.plan_of(0.0)
        best: tuple = ()
        for number in range(_ROUNDS):
            self.asked.progress(f'searching the latency, round {number + 1}')
            plan, pruned, layers = self._guess()
            predicted = self._predicted(layers)
            dense, left = self._share(pruned)
            miss = abs(left - self.left)
            summed = self._summed(layers)
            if not best or miss < best[0]:
                best = (miss, plan, predicted, dense, left, summed)
            if miss <= NEAR * self.left:
                break
            self.missed.append(left - summed)
        miss, plan, predicted, dense, left, summed = best
        if miss > NEAR:
            raise ValueError(
                f'asked for {self.left:.1%} of the latency, {left:.1%} '
                f'(of {dense:.1f} ms) is the nearest in {_ROUNDS} '
                'measurements; ask for another ratio, or more --latency-runs '
                'on a machine that does nothing else'
            )
        plan.provenance.update(
            target='latency',
            sparsity=self.asked.pruner.sparsity,
            latency=dict(
                asked=self.left,
                by_layers=summed,
                predicted=predicted,
                measured=left,
                dense_ms=dense,
                measured_ms=left * dense,
                rest_ms=self.rest,
                rounds=number + 1,
                table=str(self.asked.table),
            ),
        )
        return plan

    def _guess(self) -> tuple[PruningPlan, nn.Module, float]:
        """A plan that is predicted to meet the latency, by the straight line
        through the two candidates that came nearest."""
        low, high = 0.0, 1.0  # of the multiply-adds gone
        seen = [(0.0, self._predicted(self.layers))]  # and the time left
        macs, problem = self.asked.pruner.sparsity, None
        best: tuple = ()
        for _ in range(_GUESSES):
            try:
                plan = self.plan_of(macs)
            except ValueError as error:  # more than can be removed
                problem, high = error, macs
                macs = (low + macs) / 2
                continue
            pruned = copy.deepcopy(self.model)
            apply_plan(pruned, plan)
            layers = self.times.total(pruned, self.asked.forward, self.groups)
            left = self._predicted(layers)
            gap = abs(left / self.left - 1)
            if not best or gap < best[0]:
                best = (gap, plan, pruned, layers)
            if gap <= _GUESS:
                break
            if left > self.left:
                low = macs
            else:
                high = macs
            seen = sorted([*seen, (macs, left)], key=self._gap)[:2]
            macs = min(max(self._meets(*seen), low), high)
            if macs in (low, high):
                macs = (low + high) / 2
        # What was not measured yet may be wrong: on a busy machine the rest
        # looks larger than it is.
        far = problem and self.missed and best and best[0] > NEAR
        if not best or far:
            raise ValueError(
                f'asked for {self.left:.1%} of the latency, which is out of '
                f'reach ({problem}); lower the ratio'
            )
        return best[1:]

    def _gap(self, point: tuple[float, float]) -> float:
        return abs(point[1] - self.left)

    def _meets(self, one: tuple, other: tuple) -> float:
        """Where the line through two points meets the asked latency."""
        rise = other[1] - one[1]
        if not rise:
            return one[0]
        return one[0] + (self.left - one[1]) * (other[0] - one[0]) / rise

    def _predicted(self, layers: float) -> float:
        """The part of the dense latency that is left."""
        missed = statistics.mean(self.missed) if self.missed else 0.0
        return self._summed(layers) + missed

    def _share(self, pruned: nn.Module) -> tuple[float, float]:
        asked = self.asked
        return share_of_time(self.model, pruned, asked.forward, asked.runs)

    def _summed(self, layers: float) -> float:
        """The same by the sum of the layers and the rest alone."""
        return (self.rest + layers) / (self.rest + self.layers)


def share_of_time(
    dense: nn.Module,
    pruned: nn.Module,
    forward: Callable[[nn.Module], Any],
    runs: int,
) -> tuple[float, float]:
    """Returns the median milliseconds of a dense model, and the part of them
    that a pruned one takes.

    The part is the median over turns, so that a busy moment hits both.

    Args:
        dense: The dense model, in eval mode.
        pruned: The other one.
        forward: Runs a model once.
        runs: Turns, at least; there are more until four seconds are full.
    """
    both = dict(dense=dense, pruned=pruned)
    forwards = {name: partial(forward, model) for name, model in both.items()}
    with torch.no_grad():
        times = time_in_turns(forwards, runs=runs)
        spent = sum(map(sum, times.values())) / runs
        more = min(round(_LONG / spent), _MOST) - runs
        if more > 0:
            again = time_in_turns(forwards, runs=more, warmup=0)
            times = {name: times[name] + again[name] for name in times}
    parts = zip(times['pruned'], times['dense'], strict=True)
    left = statistics.median(a / b for a, b in parts)
    return statistics.median(times['dense']), left
