"""Zeroes units and weights: the only code that changes values."""

import torch
from torch import Tensor, nn

from .groups import named_tensors
from .plan import PruningPlan


@torch.no_grad()
def mask_plan(model: nn.Module, plan: PruningPlan) -> None:
    """Makes a dense model compute what the pruned one computes, in place.

    The consumers of every removed unit take their ``fill``, so nothing is
    assumed about what lies between producer and consumer.

    Args:
        model: The dense model.
        plan: Which units stay.

    Raises:
        ValueError: If a tensor of the plan is missing.
    """
    tensors = named_tensors(model)
    for group in plan.groups:
        removed = plan.removed(group)
        for part in group.consumers if removed else ():
            if part.tensor not in tensors:
                raise ValueError(
                    f'group {group.name!r}: the model has no tensor '
                    f'{part.tensor!r}; the plan belongs to another model'
                )
            tensor = tensors[part.tensor]
            index = part.index(removed, group.size).to(tensor.device)
            tensor.index_fill_(part.dim, index, part.fill)


@torch.no_grad()
def keep_zeros(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Zeroes the weights that ``masks`` drops, in place.

    Args:
        model: Any model.
        masks: Tensor name -> boolean mask of its shape, true = keep.

    Raises:
        ValueError: If a mask names no tensor of the model.
    """
    tensors = named_tensors(model)
    for name, mask in masks.items():
        if name not in tensors:
            raise ValueError(f'a mask names {name!r}, the model has no such')
        tensors[name].masked_fill_(~mask.to(tensors[name].device), 0)


def read_zeros(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Returns where the named weights are not zero, as boolean masks.

    To be read once, when a run starts from a pruned checkpoint: later a
    surviving weight may become exactly zero and must not be frozen by that.
    """
    tensors = named_tensors(model)
    return {name: tensors[name].detach() != 0 for name in names}
