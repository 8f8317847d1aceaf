"""What a model lost, as tables: lists of plain rows."""

import math
from collections.abc import Callable, Mapping

from torch import nn

from .groups import PruneGroup, named_tensors
from .plan import PruningPlan

Shapes = Mapping[str, tuple[int, ...]]


def group_rows(plan: PruningPlan, groups: list[PruneGroup]) -> list[dict]:
    """Returns one row per group: its units, how many stay, and why dense."""
    unscored = plan.provenance.get('unscored', {})
    rows = []
    for group in groups:
        kept = len(plan.keep.get(group.name, range(group.size)))
        rows.append(
            dict(
                group=group.name,
                granularity=group.granularity,
                units=group.size,
                kept=kept,
                sparsity=1 - kept / group.size,
                dense_because=group.dense or unscored.get(group.name, ''),
            )
        )
    return rows


def kind_rows(groups: list[dict]) -> list[dict]:
    """Returns one row per granularity: groups, units, kept units."""
    kinds: dict[str, dict] = {}
    for row in groups:
        name = row['granularity']
        counts = dict(groups=0, dense_groups=0, units=0, kept=0)
        kind = kinds.setdefault(name, dict(granularity=name, **counts))
        if row['dense_because']:
            kind['dense_groups'] += 1
            continue
        kind['groups'] += 1
        kind['units'] += row['units']
        kind['kept'] += row['kept']
    return list(kinds.values())


def unit_tables(
    dense: nn.Module,
    model: nn.Module,
    plan: PruningPlan,
    groups: list[PruneGroup],
    reason: Callable[[str], str],
) -> dict[str, list[dict]]:
    """Returns the tables about a model that lost units, by name."""
    shapes = {n: tuple(t.shape) for n, t in named_tensors(dense).items()}
    rows = group_rows(plan, groups)
    return dict(
        groups=rows,
        kinds=kind_rows(rows),
        uncovered=uncovered_rows(dense, groups, reason),
        modules=module_rows(shapes, model),
        tensors=tensor_rows(shapes, model, groups),
    )


def module_rows(dense: Shapes, model: nn.Module) -> list[dict]:
    """Returns one row per matrix that lost elements or has zeros."""
    rows = []
    for name, tensor in named_tensors(model).items():
        before, left = math.prod(dense[name]), int(tensor.count_nonzero())
        if left < before and tensor.ndim > 1:
            rows.append(
                dict(
                    tensor=name,
                    dense_shape=list(dense[name]),
                    shape=list(tensor.shape),
                    sparsity=1 - left / before,
                )
            )
    return rows


def tensor_rows(
    dense: Shapes, model: nn.Module, groups: list[PruneGroup]
) -> list[dict]:
    """Returns one row per parameter: its elements before and after, and the
    groups whose units it holds.

    Zeros of the pruned model count as left.
    """
    owners: dict[str, dict[str, None]] = {}
    for group in groups:
        for part in group.slices:
            owners.setdefault(part.tensor, {})[group.name] = None
    return [
        dict(
            tensor=name,
            params=math.prod(dense[name]),
            left=p.numel(),
            groups=list(owners.get(name, ())),
        )
        for name, p in model.named_parameters()
    ]


def uncovered_rows(
    model: nn.Module,
    groups: list[PruneGroup],
    reason: Callable[[str], str],
) -> list[dict]:
    """Returns the matrices that no group covers along their outputs."""
    covered = {s.tensor for g in groups for s in g.producers}
    return [
        dict(tensor=name, params=tensor.numel(), dense_because=reason(name))
        for name, tensor in model.named_parameters()
        if tensor.ndim > 1 and name not in covered
    ]
