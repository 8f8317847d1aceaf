"""What a pass over data leaves for the criteria."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

from torch import Tensor

from .groups import PruneGroup

Scores = dict[str, Tensor | None]
# What a criterion may need -> ``collector(model, groups, weights, stats)``, a
# context in which calibration runs its batches.
COLLECTORS: dict[str, Callable] = {}
# What it may need of gradients -> field of Statistics that has its mean over
# batches, and ``value(groups, tensors, gradients)`` of one batch, by name.
FROM_GRADIENTS: dict[str, tuple[str, Callable]] = {
    'grad': ('grad', lambda groups, tensors, grads: grads)
}


@dataclass
class Statistics:
    """What criteria may ask for; :func:`mmprune.calibration.calibrate` fills
    in what they need.

    Args:
        tensors: Every parameter and buffer of the dense model by name.
        grad: Parameter name -> gradient of the mean calibration loss.
        squared_grad: Parameter name -> mean over batches of the squared
            gradient of a batch's mean loss.
        activation: Name of a layer's weight -> power (1 or 2) -> mean of
            that power of the absolute output, one per output channel.
        inputs: Name of a weight -> mean over windows of the summed squares of
            each input, in a shape that multiplies the weight.
        hessian: Name of a weight -> the same mean of products of two inputs,
            times 2, ``[in, in]``.
        changes: Name of a group -> how much the loss changes without each of
            its units, mean over steps ``[size]``.
        survivors: Name of a matrix -> which of its weights a global pruning
            of single weights by magnitude would keep.
        kinds: Module path -> class of the module, to tell norm layers.
        num_batches: Batches seen.
    """

    tensors: dict[str, Tensor]
    grad: dict[str, Tensor] = field(default_factory=dict)
    squared_grad: dict[str, Tensor] = field(default_factory=dict)
    activation: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    hessian: dict[str, Tensor] = field(default_factory=dict)
    changes: dict[str, Tensor] = field(default_factory=dict)
    survivors: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[str, type] = field(default_factory=dict)
    num_batches: int = 0


@singledispatch
def scores_of(
    criterion: Any,
    groups: Sequence[PruneGroup],
    stats: Statistics,
    pruned: Mapping[str, Sequence[int]],
) -> Scores:
    """Returns the scores of groups by name; ``None`` where there are none.

    A criterion whose scores depend on all groups registers its own way.

    Args:
        criterion: The criterion.
        groups: The groups that compete.
        stats: What it reads.
        pruned: Group name -> units that are masked already.
    """
    return {group.name: criterion(group, stats) for group in groups}
