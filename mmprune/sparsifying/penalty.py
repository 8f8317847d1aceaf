"""Penalties that drive weights to zero while a model is trained."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checks import check_choice
from ..groups import PruneGroup, Slice, unit_elements
from ..masks import Region, scale_units, unit_norms

_SHAPES = {
    'power': lambda t, p: t**p,
    'exponential': lambda t, p: (math.exp(t**p) - 1) / (math.e - 1),
}


@dataclass(frozen=True)
class DecayPenalty:
    r"""A growing pull to zero on what is about to be pruned.

    With g the strength, p the exponent and t from 0 to 1 the progress, the
    pull is :math:`g t^p` (``power``) or :math:`g (e^{t^p}-1)/(e-1)`
    (``exponential``). Both rise from 0 to g.

    Args:
        strength: g, the final one.
        shape: ``power`` or ``exponential``.
        exponent: p.
        per: Whether it grows over the whole ``round`` or anew in each
            ``epoch``.
        mode: ``gradient`` adds pull x weight to the gradient; ``decoupled``
            shrinks the weight by learning rate x pull, because Adam would
            rescale a gradient; ``auto`` decides by the optimizer.

    Raises:
        ValueError: If a value is out of range.
    """

    strength: float = 1.0
    shape: str = 'exponential'
    exponent: float = 4
    per: str = 'round'
    mode: str = 'auto'

    def __post_init__(self) -> None:
        check_choice('shape of the decay', self.shape, tuple(_SHAPES))
        check_choice('per of the decay', self.per, ('round', 'epoch'))
        modes = ('auto', 'gradient', 'decoupled')
        check_choice('mode of the decay', self.mode, modes)
        for name in ('strength', 'exponent'):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(
                    f'{name} of the decay must be a number that is not '
                    f'negative, found {value!r}'
                )
        if not self.exponent:
            raise ValueError('exponent of the decay must be positive, found 0')

    def at(self, progress: float) -> float:
        """Returns the pull at a progress in ``[0, 1]``."""
        return self.strength * _SHAPES[self.shape](progress, self.exponent)

    def apply(
        self, regions: Iterable[Region], optimizer: Optimizer, pull: float
    ) -> None:
        """Pulls regions to zero, in place.

        To be called right before an optimizer's step: there the gradient is
        unscaled, clipped and complete, as for weight decay.
        """
        mode = self.mode
        if mode == 'auto':
            plain = isinstance(optimizer, torch.optim.SGD)
            mode = 'gradient' if plain else 'decoupled'
        rates = learning_rates(optimizer)
        for region in regions:
            rate = rates.get(id(region.tensor))
            if rate is None:
                continue
            if mode == 'gradient':
                region.pull(pull)
            else:
                region.shrink(max(0.0, 1 - rate * pull))


def learning_rates(optimizer: Optimizer) -> dict[int, float]:
    """Returns ``id`` of each parameter -> its present learning rate."""
    return {
        id(param): float(group['lr'])
        for group in optimizer.param_groups
        for param in group['params']
    }


def shrink_units(
    tensors: Mapping[str, Tensor],
    parts: Sequence[Slice],
    size: int,
    amount: float,
) -> None:
    r"""Takes a proximal step of the group lasso, in place.

    A unit with n weights :math:`w` becomes :math:`w \max(0, 1 - a \sqrt n /
    \lVert w \rVert)`: every unit loses the same norm per weight, and one
    that has no more becomes exactly zero. Yuan & Lin, "Model selection and
    estimation in regression with grouped variables", 2006.

    Args:
        tensors: Tensor name -> tensor.
        parts: Where the weights of the units lie.
        size: Number of units.
        amount: a, the penalty times the step size.
    """
    count = sum(unit_elements(tensors[p.tensor].shape, p) for p in parts)
    norms = unit_norms(tensors, parts, size)
    left = 1 - amount * count**0.5 / norms.clamp_min(1e-30)
    scale_units(tensors, parts, size, left.clamp_min(0))


def trained_producers(
    group: PruneGroup, tensors: Mapping[str, Tensor]
) -> tuple[Slice, ...]:
    """Returns the trained weights that write the units of a group.

    Empty if one of them is frozen: with a constant left, the units would
    not be zero even if all others were.
    """
    parts = [
        part
        for part in group.producers
        if isinstance(tensors[part.tensor], nn.Parameter)
    ]
    if all(tensors[part.tensor].requires_grad for part in parts):
        return tuple(parts)
    return ()
