"""What the gradients that a training steps with leave for criteria."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..groups import PruneGroup
from ..importance.kd_grad import unit_changes
from ..statistics import Statistics


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

    def fill(self, stats: Statistics) -> None:
        """Gives a criterion the averages."""
        stats.grad = self.averages()

    def averages(self) -> dict[str, Tensor]:
        """Returns parameter name -> average gradient.

        Raises:
            ValueError: If no step has been made yet.
        """
        if not self._sums:
            raise _too_early()
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


class UnitChanges:
    """How much the loss of the last steps changes without each unit.

    Read right before an optimizer steps, as :class:`GradientAverages` does,
    so a step that is clipped counts less.

    Args:
        model: The model in training.
        groups: The groups that are scored.
        optimizers: Those that train it.
        kind: ``abs_of_sum`` or ``sum_of_abs``, see
            :func:`mmprune.importance.kd_grad.unit_changes`.
        window: Number of steps that are remembered.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[PruneGroup],
        optimizers: Sequence[Optimizer],
        kind: str,
        window: int,
    ) -> None:
        self._groups, self._kind = list(groups), kind
        names = {s.tensor for g in groups for s in g.slices}
        params = dict(model.named_parameters(remove_duplicate=False))
        self._params = {n: params[n] for n in sorted(names) if n in params}
        self._steps: deque[Tensor] = deque(maxlen=window)
        # With several optimizers the last one sees all gradients.
        self._handles = [optimizers[-1].register_step_pre_hook(self._add)]

    def fill(self, stats: Statistics) -> None:
        """Gives a criterion the means over the last steps.

        Raises:
            ValueError: If no step has been made yet.
        """
        if not self._steps:
            raise _too_early()
        mean = torch.stack(list(self._steps)).mean(0)
        sizes = [group.size for group in self._groups]
        names = [group.name for group in self._groups]
        stats.changes = dict(zip(names, mean.split(sizes), strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the steps, for a checkpoint."""
        if not self._steps:
            return {}
        return dict(steps=torch.stack(list(self._steps)).cpu())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from the steps of a checkpoint.

        Raises:
            ValueError: If they are those of other groups.
        """
        steps = state.get('steps')
        if steps is None:
            return
        total = sum(group.size for group in self._groups)
        if steps.shape[1] != total:
            raise ValueError(
                f'the checkpoint scores {steps.shape[1]} units, this model '
                f'has {total}; resume with the config of that training'
            )
        device = next(iter(self._params.values())).device
        self._steps.extend(steps.to(device))

    def release(self) -> None:
        """Lets go of the optimizers; steps count no more."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _add(self, *_: object) -> None:
        grads = {
            name: param.grad
            for name, param in self._params.items()
            if param.grad is not None
        }
        found = unit_changes(self._groups, self._params, grads, self._kind)
        lacking = [g.name for g in self._groups if g.name not in found]
        if lacking:
            raise ValueError(
                f'group {lacking[0]!r} got no gradient in this step, and the '
                'criterion reads it; protect the group or choose a criterion '
                'of weights alone'
            )
        self._steps.append(torch.cat([found[g.name] for g in self._groups]))


def _too_early() -> ValueError:
    return ValueError(
        'the criterion reads gradients, and pruning begins before the first '
        'optimizer step; begin the schedule later'
    )
