"""The pass over data: collects the statistics that a criterion needs."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .allocation import lowest_overall
from .groups import (
    PruneGroup,
    matrix_names,
    named_tensors,
    unit_elements,
)
from .statistics import COLLECTORS, FROM_GRADIENTS, Statistics

LossFn = Callable[[nn.Module, Any], Tensor]


def calibrate(
    model: nn.Module,
    groups: Iterable[PruneGroup],
    needs: set[str],
    batches: Iterable[Any] = (),
    loss_fn: LossFn | None = None,
    *,
    weights: Sequence[str] = (),
    sparsity: float = 0.0,
) -> Statistics:
    """Returns the statistics that a criterion needs.

    Gradients are taken of every parameter that a group slices, also of those
    that training freezes; the model, its flags and gradients are left as
    they were.

    Args:
        model: The dense model, in the mode in which it is to be measured.
        groups: The groups that will be scored.
        needs: ``survivors``, keys of :data:`~mmprune.statistics.COLLECTORS`
            and :data:`~mmprune.statistics.FROM_GRADIENTS`; empty for the
            weights alone.
        batches: Calibration data; read only if something needs it.
        loss_fn: Returns the scalar loss of the model on a batch.
        weights: Names of tensors whose single weights will be scored.
        sparsity: Of the pruning that ``survivors`` asks about.

    Raises:
        ValueError: If data or a loss is needed and there is none, or if a
            group or weight gets no gradient at all.
    """
    groups = list(groups)
    stats = Statistics(
        tensors={k: t.detach() for k, t in named_tensors(model).items()},
        kinds={path: type(m) for path, m in model.named_modules()},
    )
    unknown = needs - {*FROM_GRADIENTS, *COLLECTORS, 'survivors'}
    if unknown:
        raise ValueError(f'no statistic is called {sorted(unknown)}')
    if 'survivors' in needs:
        stats.survivors = surviving_weights(stats.tensors, groups, sparsity)
    if needs - {'survivors'}:
        names = {s.tensor for g in groups for s in g.slices} | set(weights)
        with ExitStack() as collecting:
            for need in sorted(needs & COLLECTORS.keys()):
                collector = COLLECTORS[need](model, groups, weights, stats)
                collecting.enter_context(collector)
            _run(model, groups, batches, loss_fn, names, needs, stats)
    if needs & FROM_GRADIENTS.keys():
        _check_gradients(groups, weights, stats)
    return stats


def surviving_weights(
    tensors: dict[str, Tensor], groups: Iterable[PruneGroup], sparsity: float
) -> dict[str, Tensor]:
    """Returns which weights a global pruning by magnitude would keep.

    Returns:
        Tensor name -> boolean mask, true = keep.
    """
    sizes = {
        name: tensors[name].detach().abs().float()
        for name in matrix_names(groups, tensors)
    }
    removed = lowest_overall(sizes, sparsity)
    return {name: ~mask for name, mask in removed.items()}


def filled_units(group: PruneGroup, survivors: dict[str, Tensor]) -> float:
    """Returns how many units the surviving weights that write them fill."""
    parts = [part for part in group.producers if part.tensor in survivors]
    per_unit = sum(unit_elements(survivors[p.tensor].shape, p) for p in parts)
    return sum(int(survivors[p.tensor].sum()) for p in parts) / per_unit


def _run(
    model: nn.Module,
    groups: Sequence[PruneGroup],
    batches: Iterable[Any],
    loss_fn: LossFn | None,
    names: set[str],
    needs: set[str],
    stats: Statistics,
) -> None:
    """Runs all batches; adds up gradients where they are needed."""
    by_gradient = bool(needs & FROM_GRADIENTS.keys())
    kind = 'gradients' if by_gradient else 'activations'
    if loss_fn is None:
        raise ValueError(
            f'a criterion that uses {kind} needs a loss; give loss_fn'
        )
    params = dict(model.named_parameters(remove_duplicate=False))
    names = sorted(names & params.keys())
    before = {name: params[name].requires_grad for name in names}
    tables: dict[str, dict[str, Tensor]] = {}
    try:
        for name in names:
            params[name].requires_grad_(True)
        for batch in batches:
            stats.num_batches += 1
            if not by_gradient:
                with torch.no_grad():
                    loss_fn(model, batch)
                continue
            found = _gradients(loss_fn(model, batch), params, names)
            # Without the sums nobody could say which weight has none.
            for need in sorted(needs & FROM_GRADIENTS.keys() | {'grad'}):
                field, value = FROM_GRADIENTS[need]
                table = tables.setdefault(need, getattr(stats, field))
                for name, term in value(groups, stats.tensors, found).items():
                    total = table.get(name)
                    table[name] = term if total is None else total + term
    finally:
        for name, flag in before.items():
            params[name].requires_grad_(flag)
    if not stats.num_batches:
        raise ValueError(
            f'a criterion that uses {kind} needs calibration data; none was '
            'given'
        )
    for table in tables.values():
        for name in table:
            table[name] = table[name] / stats.num_batches


def _gradients(
    loss: Tensor, params: dict[str, nn.Parameter], names: list[str]
) -> dict[str, Tensor]:
    if not torch.isfinite(loss):
        raise ValueError(
            f'the calibration loss is {loss.item()}; check weights and data'
        )
    grads = torch.autograd.grad(
        loss, [params[name] for name in names], allow_unused=True
    )
    pairs = zip(names, grads, strict=True)
    return {name: grad for name, grad in pairs if grad is not None}


def _check_gradients(
    groups: list[PruneGroup], weights: Sequence[str], stats: Statistics
) -> None:
    lacking = [
        f'group {group.name!r}'
        for group in groups
        if not any(s.tensor in stats.grad for s in group.slices)
    ] + [f'weight {name!r}' for name in weights if name not in stats.grad]
    if lacking:
        raise ValueError(
            f'{lacking[0]}: the calibration loss does not depend on it, so '
            'it has no gradient; protect it or choose a criterion without '
            'gradients'
        )
