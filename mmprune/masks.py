"""Zeroes units and weights: the only code that changes values."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .groups import (
    PruneGroup,
    Slice,
    named_tensors,
    unit_elements,
    unit_sums,
)
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
def keep_zeros(
    model: nn.Module,
    masks: dict[str, Tensor],
    fills: Mapping[str, float] | None = None,
) -> None:
    """Zeroes the weights that ``masks`` drops, in place.

    Args:
        model: Any model.
        masks: Tensor name -> boolean mask of its shape, true = keep.
        fills: Tensor name -> what takes the place of zero.

    Raises:
        ValueError: If a mask names no tensor of the model, or one of another
            shape.
    """
    tensors = named_tensors(model)
    for name, mask in masks.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ValueError(f'a mask names {name!r}, the model has no such')
        if tensor.shape != mask.shape:
            raise ValueError(
                f'the mask of {name!r} has shape {tuple(mask.shape)}, the '
                f'tensor {tuple(tensor.shape)}; it is of another model'
            )
        drop = {name: ~mask.to(tensor.device)}
        fill_dropped(tensors, drop, fills or {})


@torch.no_grad()
def fill_dropped(
    tensors: Mapping[str, Tensor],
    drop: Mapping[str, Tensor],
    fills: Mapping[str, float],
) -> None:
    """Overwrites what is dropped, in place, without any check.

    Args:
        tensors: Tensor name -> tensor.
        drop: Tensor name -> boolean mask on its device, true = gone.
        fills: Tensor name -> what takes the place of zero.
    """
    for name, gone in drop.items():
        tensors[name].masked_fill_(gone, fills.get(name, 0.0))


def read_zeros(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Returns where the named weights are not zero, as boolean masks.

    To be read once, when a run starts from a pruned checkpoint: later a
    surviving weight may become exactly zero and must not be frozen by that.
    """
    tensors = named_tensors(model)
    return {name: tensors[name].detach() != 0 for name in names}


def plan_masks(
    model: nn.Module, plan: PruningPlan
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Returns what :func:`mask_plan` would overwrite, and with what.

    Returns:
        Tensor name -> boolean mask of its shape, true = keep; and tensor
        name -> fill, where that is not zero.

    Raises:
        ValueError: If two groups fill one tensor differently.
    """
    tensors = named_tensors(model)
    masks: dict[str, Tensor] = {}
    fills: dict[str, float] = {}
    for group in plan.groups:
        removed = plan.removed(group)
        for part in group.consumers if removed else ():
            tensor = tensors[part.tensor]
            mask = masks.setdefault(
                part.tensor, torch.ones_like(tensor, dtype=torch.bool)
            )
            index = part.index(removed, group.size).to(tensor.device)
            mask.index_fill_(part.dim, index, False)
            if fills.setdefault(part.tensor, part.fill) != part.fill:
                raise ValueError(
                    f'group {group.name!r} fills {part.tensor!r} with '
                    f'{part.fill:g}, another group with '
                    f'{fills[part.tensor]:g}; protect one of them'
                )
    return masks, {name: fill for name, fill in fills.items() if fill}


def plan_from_zeros(
    model: nn.Module, groups: Iterable[PruneGroup]
) -> PruningPlan:
    """Returns the plan that removes every unit that is zero already.

    A unit is zero if all its consumers have their fill, as
    :func:`mask_plan` leaves them, or if all weights that write it are zero,
    as a group penalty leaves them: its output is then zero as long as the
    activation behind it maps zero to zero. Of a group without any other
    unit the first stays.

    Args:
        model: The dense model with its zeros.
        groups: What its adapters yield.

    Raises:
        ValueError: If no unit is zero, or a group does not fit the model.
    """
    tensors = named_tensors(model)
    open_groups = [g for g in groups if not g.dense]
    keep = {}
    for group in open_groups:
        unread = _units_at_fill(group.consumers, group, tensors)
        # Running statistics of a norm do not write a unit, its scale and
        # shift do.
        params = [
            part
            for part in group.producers
            if isinstance(tensors.get(part.tensor), nn.Parameter)
        ]
        dead = unread | _units_at_fill(params, group, tensors)
        keep[group.name] = (~dead).nonzero().flatten().tolist() or [0]
    pruned = tuple(g for g in open_groups if len(keep[g.name]) < g.size)
    if not pruned:
        raise ValueError(
            f'none of the {len(open_groups)} groups has a unit that is zero; '
            'train with GradualPruningHook or GroupPenaltyHook first'
        )
    return PruningPlan(
        groups=pruned,
        keep={g.name: keep[g.name] for g in pruned},
        provenance=dict(importance='units that were zero'),
    )


def _units_at_fill(
    parts: Iterable[Slice], group: PruneGroup, tensors: dict[str, Tensor]
) -> Tensor:
    """Returns which units have nothing but fill in all parts, ``[size]``."""
    parts = list(parts)
    dead = torch.full((group.size,), bool(parts))
    for part in parts:
        if part.tensor not in tensors:
            raise ValueError(
                f'group {group.name!r}: the model has no tensor '
                f'{part.tensor!r}; the groups belong to another model'
            )
        values = tensors[part.tensor].detach()
        other = (values != part.fill).to(torch.int32)
        dead &= (unit_sums(other, part, group.size) == 0).cpu()
    return dead


@torch.no_grad()
def unit_norms(
    tensors: Mapping[str, Tensor], parts: Iterable[Slice], size: int
) -> Tensor:
    """Returns the Euclidean norm of all weights of each unit, ``[size]``.

    Args:
        tensors: Tensor name -> tensor.
        parts: Where the weights of the units lie.
        size: Number of units.
    """
    squares = [
        unit_sums(tensors[part.tensor].detach().float().square(), part, size)
        for part in parts
    ]
    return torch.stack(squares).sum(0).sqrt()


@torch.no_grad()
def scale_units(
    tensors: Mapping[str, Tensor],
    parts: Iterable[Slice],
    size: int,
    factors: Tensor,
) -> None:
    """Multiplies all weights of each unit by its factor, in place.

    Args:
        tensors: Tensor name -> tensor.
        parts: Where the weights of the units lie.
        size: Number of units.
        factors: ``[size]``.
    """
    for part in parts:
        tensor = tensors[part.tensor]
        scale = torch.ones(tensor.shape[part.dim], device=tensor.device)
        index = part.index(range(size), size).to(tensor.device)
        scale[index] = (
            factors.to(tensor.device, scale.dtype)
            .view(1, size, 1)
            .expand(part.copies, size, part.block)
            .flatten()
        )
        shape = [1] * tensor.ndim
        shape[part.dim] = -1
        tensor.mul_(scale.view(shape).to(tensor.dtype))


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


def pack_masks(
    masks: dict[str, Tensor], fills: Mapping[str, float] | None = None
) -> dict[str, dict]:
    """Returns the masks with one bit per weight, safe in a checkpoint.

    Args:
        masks: Tensor name -> boolean mask.
        fills: Tensor name -> what takes the place of zero.

    Returns:
        Tensor name -> ``shape`` (list), ``bits`` (bytes as a tensor) and
        ``fill``.
    """
    return {
        name: dict(
            shape=list(mask.shape),
            bits=torch.from_numpy(np.packbits(mask.cpu().numpy())),
            fill=(fills or {}).get(name, 0.0),
        )
        for name, mask in masks.items()
    }


def unpack_masks(
    packed: Mapping[str, Mapping],
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Returns the masks and fills that :func:`pack_masks` packed.

    Raises:
        ValueError: If the data is not what it wrote.
    """
    masks, fills = {}, {}
    for name, entry in packed.items():
        try:
            shape = tuple(entry['shape'])
            bits = np.unpackbits(entry['bits'].cpu().numpy())
            flat = torch.from_numpy(bits[: int(np.prod(shape))])
            masks[name] = flat.bool().view(shape)
            fills[name] = float(entry['fill'])
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(
                f'the checkpoint has no readable mask of {name!r}: {error}'
            ) from error
    return masks, {name: fill for name, fill in fills.items() if fill}
