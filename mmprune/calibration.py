"""The pass over data: collects the statistics that a criterion needs."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .allocation import lowest_overall
from .groups import PruneGroup, matrix_names, named_tensors, unit_elements
from .inputs import InputSums, watched_layers
from .statistics import Statistics

LossFn = Callable[[nn.Module, Any], Tensor]
NEEDS = ('grad', 'activation', 'inputs', 'hessian', 'survivors')


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
        needs: Some of :data:`NEEDS`; empty for the weights alone.
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
    unknown = needs - set(NEEDS)
    if unknown:
        raise ValueError(f'no statistic is called {sorted(unknown)}')
    if 'survivors' in needs:
        stats.survivors = surviving_weights(stats.tensors, groups, sparsity)
    if needs - {'survivors'}:
        names = {s.tensor for g in groups for s in g.slices} | set(weights)
        with (
            _watched_outputs(model, groups, needs, stats),
            _watched_inputs(model, groups, weights, needs, stats),
        ):
            _run(model, batches, loss_fn, names, needs, stats)
    if 'grad' in needs:
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
    batches: Iterable[Any],
    loss_fn: LossFn | None,
    names: set[str],
    needs: set[str],
    stats: Statistics,
) -> None:
    """Runs all batches; adds up gradients where they are needed."""
    kind = 'gradients' if 'grad' in needs else 'activations'
    if loss_fn is None:
        raise ValueError(
            f'a criterion that uses {kind} needs a loss; give loss_fn'
        )
    params = dict(model.named_parameters(remove_duplicate=False))
    names = sorted(names & params.keys())
    before = {name: params[name].requires_grad for name in names}
    try:
        for name in names:
            params[name].requires_grad_(True)
        for batch in batches:
            stats.num_batches += 1
            if 'grad' not in needs:
                with torch.no_grad():
                    loss_fn(model, batch)
                continue
            found = _gradients(loss_fn(model, batch), params, names)
            for name, grad in found.items():
                total = stats.grad.get(name)
                stats.grad[name] = grad if total is None else total + grad
    finally:
        for name, flag in before.items():
            params[name].requires_grad_(flag)
    if not stats.num_batches:
        raise ValueError(
            f'a criterion that uses {kind} needs calibration data; none was '
            'given'
        )
    stats.grad = {k: g / stats.num_batches for k, g in stats.grad.items()}
    for powers in stats.activation.values():
        for power in powers:
            powers[power] = powers[power] / stats.num_batches


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


@contextmanager
def _watched_outputs(
    model: nn.Module,
    groups: list[PruneGroup],
    needs: set[str],
    stats: Statistics,
):
    """Adds up the size of what the layers put out while it lasts."""
    hooks = []
    written = {part.tensor for group in groups for part in group.producers}
    for name in written if 'activation' in needs else ():
        path, _, leaf = name.rpartition('.')
        if leaf != 'weight':
            continue

        def look(module: nn.Module, _: Any, out: Tensor, name=name) -> None:
            dim = -1 if isinstance(module, nn.Linear) else 1
            size = out.detach().double().abs().movedim(dim, 0).flatten(1)
            seen = stats.activation.setdefault(name, {1: 0.0, 2: 0.0})
            # One value per output channel, in the place of a weight's row.
            for power in seen:
                seen[power] = seen[power] + (size**power).mean(1)

        hooks.append(model.get_submodule(path).register_forward_hook(look))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _watched_inputs(
    model: nn.Module,
    groups: list[PruneGroup],
    weights: Sequence[str],
    needs: set[str],
    stats: Statistics,
):
    """Adds up what the layers read while it lasts."""
    if not needs & {'inputs', 'hessian'}:
        yield
        return
    read = {part.tensor for group in groups for part in group.consumers}
    layers = watched_layers(model, sorted(read | set(weights)))
    sums = InputSums(layers, products='hessian' in needs)
    with sums.watching():
        yield
    stats.inputs, stats.hessian = sums.means(stats.num_batches)
