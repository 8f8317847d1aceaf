"""Moving averages of the gradients that a training steps with."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


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
                'the criterion reads gradients, and '
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
