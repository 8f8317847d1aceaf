"""What a gradual pruning removes next: single weights or whole units."""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from mmengine.dist import broadcast, broadcast_object_list
from torch import Tensor, nn
from torch.optim import Optimizer

from ..groups import PruneGroup
from ..importance import Magnitude
from ..masks import plan_masks
from ..plan import PruningPlan
from ..pruners import (
    StructuredPruner,
    WeightPruner,
    protect,
    prunable_weights,
)
from ..statistics import calibrate

MASKED_PLAN = 'masked_plan'


class GradualWeights:
    """Single weights, the smallest first.

    Args:
        pruner: Scope and protection; its sparsity is not used.
        model: The model in training.
    """

    unit = 'weights'

    def __init__(self, pruner: WeightPruner, model: nn.Module) -> None:
        self._pruner, self._model = pruner, model
        self._weights = prunable_weights(model, pruner.protect)
        self.masks: dict[str, Tensor] = {}
        self.fills: dict[str, float] = {}

    def check(self, sparsity: float) -> None:
        """Raises ``ValueError`` if the sparsity cannot be reached."""
        self._at(sparsity).masks(self._model)

    def choose(self, sparsity: float) -> None:
        """Extends the masks to a sparsity; rank 0 decides."""
        self.masks = self._at(sparsity).masks(self._model, self.masks)
        for mask in self.masks.values():
            bits = mask.to(torch.uint8)
            broadcast(bits)
            mask.copy_(bits.bool())
        self._tell_plan()

    def count(self) -> tuple[int, int]:
        """Returns how many weights are gone, and of how many."""
        gone = sum(int((~mask).sum()) for mask in self.masks.values())
        return gone, sum(w.numel() for w in self._weights.values())

    def save(self, meta: dict) -> None:
        """Says in a checkpoint which weights are sparse."""
        plan = meta.get('pruning_plan') or PruningPlan((), {}).to_dict()
        sparse = {**plan['sparse'], **self._sparse()}
        meta['pruning_plan'] = {**plan, 'sparse': sparse}

    def load(self, meta: dict, masks: dict[str, Tensor]) -> bool:
        """Goes on from the masks of a checkpoint, if it has any."""
        self.masks = {
            name: mask.to(self._weights[name].device)
            for name, mask in masks.items()
            if name in self._weights
        }
        self._tell_plan()
        return bool(self.masks)

    def _tell_plan(self) -> None:
        """Says in the model's own plan, if it has one, what is sparse."""
        plan = getattr(self._model, 'pruning_plan', None)
        if plan is not None:
            sparse = {**plan.sparse, **self._sparse()}
            self._model.pruning_plan = dataclasses.replace(plan, sparse=sparse)

    def _sparse(self) -> dict[str, str]:
        return dict.fromkeys(self.masks, 'unstructured')

    def _at(self, sparsity: float) -> WeightPruner:
        return dataclasses.replace(self._pruner, sparsity=sparsity)


class GradualUnits:
    """Whole units: what reads them is masked, shapes stay.

    Args:
        pruner: Criterion, scope and protection; its sparsity is not used.
        model: The model in training, dense.
        groups: What its adapters yield.
        gradients: Averages of the gradients, for criteria that read them.
    """

    unit = 'units'

    def __init__(
        self,
        pruner: StructuredPruner,
        model: nn.Module,
        groups: Sequence[PruneGroup],
        gradients: 'GradientAverages | None' = None,
    ) -> None:
        self._pruner, self._model = pruner, model
        self._groups = protect(groups, pruner.protect)
        self._gradients = gradients
        self._plan = PruningPlan((), {})
        self.masks: dict[str, Tensor] = {}
        self.fills: dict[str, float] = {}

    def check(self, sparsity: float) -> None:
        """Raises ``ValueError`` if the sparsity cannot be reached."""
        pruner = self._at(sparsity)
        if self._gradients is not None:
            # How much can go depends on the sizes only, not on the scores.
            pruner = dataclasses.replace(pruner, importance=Magnitude())
        pruner(self._model, self._groups)

    def choose(self, sparsity: float) -> None:
        """Extends the plan to a sparsity; rank 0 decides."""
        stats = calibrate(self._model, self._groups, set())
        if self._gradients is not None:
            stats.grad = self._gradients.averages()
        plan = self._at(sparsity)(
            self._model, self._groups, stats=stats, before=self._plan
        )
        data = [plan.to_dict()]
        broadcast_object_list(data)
        self._take(PruningPlan.from_dict(data[0]))

    def count(self) -> tuple[int, int]:
        """Returns how many units are gone, and of how many."""
        gone = sum(len(self._plan.removed(g)) for g in self._plan.groups)
        closed = self._plan.provenance.get('unscored', {})
        open_groups = [g for g in self._groups if not g.dense]
        return gone, sum(g.size for g in open_groups if g.name not in closed)

    def save(self, meta: dict) -> None:
        """Writes the plan of the masked units into a checkpoint.

        Not as ``pruning_plan``: the shapes of this model are dense.
        """
        meta[MASKED_PLAN] = self._plan.to_dict()

    def load(self, meta: dict, masks: dict[str, Tensor]) -> bool:
        """Goes on from the plan of a checkpoint, if it has one."""
        if MASKED_PLAN not in meta:
            return False
        self._take(PruningPlan.from_dict(meta[MASKED_PLAN]))
        return True

    def _take(self, plan: PruningPlan) -> None:
        self._plan = plan
        self.masks, self.fills = plan_masks(self._model, plan)

    def _at(self, sparsity: float) -> StructuredPruner:
        return dataclasses.replace(self._pruner, sparsity=sparsity)


class GradientAverages:
    """Moving averages of the gradients that an optimizer steps with.

    ``.grad`` is cleared when a Runner's hooks see an iteration, so they are
    read right before each step: summed over ranks and accumulated batches,
    unscaled and clipped, and the same on every rank.

    Args:
        model: The model in training.
        names: Parameters to follow.
        optimizers: Those that train it.
        momentum: How much of the average stays at each step.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        optimizers: Iterable[Optimizer],
        momentum: float = 0.9,
    ) -> None:
        params = dict(model.named_parameters(remove_duplicate=False))
        self._params = {n: params[n] for n in sorted(names) if n in params}
        self._momentum = momentum
        self._sums: dict[str, Tensor] = {}
        self._handles = [
            optimizer.register_step_pre_hook(self._add)
            for optimizer in optimizers
        ]

    def averages(self) -> dict[str, Tensor]:
        """Returns parameter name -> average gradient.

        Raises:
            ValueError: If no step has been made yet.
        """
        if not self._sums:
            raise ValueError(
                'GradualPruningHook: the criterion reads gradients, and '
                'pruning begins before the first optimizer step; begin the '
                'schedule later'
            )
        return dict(self._sums)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the averages, for a checkpoint."""
        return {name: total.cpu() for name, total in self._sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from the averages of a checkpoint."""
        self._sums = {
            name: total.to(self._params[name].device, copy=True)
            for name, total in state.items()
            if name in self._params
        }

    def release(self) -> None:
        """Lets go of the optimizers."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _add(self, optimizer: Optimizer, *args: object) -> None:
        mine = {id(p) for g in optimizer.param_groups for p in g['params']}
        for name, param in self._params.items():
            if param.grad is not None and id(param) in mine:
                grad = param.grad.float()
                if name in self._sums:
                    self._sums[name].lerp_(grad, 1 - self._momentum)
                else:
                    self._sums[name] = grad.clone()
