"""Units that are zero already become a plan."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..groups import PruneGroup, Slice, named_tensors, unit_sums
from ..plan import PruningPlan


def plan_from_zeros(
    model: nn.Module, groups: Iterable[PruneGroup]
) -> PruningPlan:
    """Returns the plan that removes every unit that is zero already.

    A unit is zero if all its consumers have their fill, as
    ``mask_plan`` leaves them, or if all weights that write it are zero,
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
