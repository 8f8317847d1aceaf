"""Scores of units between two rounds, high = keep."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..allocation import lowest, round_half_up
from ..groups import PruneGroup, Slice, named_tensors, unit_sums
from ..registry import TASK_UTILS
from ..statistics import Statistics, calibrate
from .options import RoundOptions

Scores = dict[str, Tensor]
LossFn = Callable[[nn.Module, Any], Tensor]


def unit_scores(
    model: nn.Module,
    groups: Sequence[PruneGroup],
    options: RoundOptions,
    sparsity: float = 0.0,
    batch: Any = None,
    loss_fn: LossFn | None = None,
) -> Scores:
    """Returns the score of each unit of each group, ``[size]`` each.

    Args:
        model: The trained model, dense in shape.
        groups: The groups to score.
        options: ``criteria``, ``include_out`` and ``normalize`` are read.
        sparsity: Of the element-wise pruning that ``remain`` asks about.
        batch: A batch, for criteria that look at activations or gradients.
        loss_fn: Runs the model on the batch and returns the loss.
    """
    kind = options.criteria
    if isinstance(kind, dict):
        scores = _registered(model, groups, kind, batch, loss_fn)
    elif kind in ('act_l1', 'act_l2'):
        scores = _activations(model, groups, kind, batch, loss_fn)
    else:
        values = _element_values(model, groups, kind, sparsity, batch, loss_fn)
        scores = {
            group.name: sum(
                unit_sums(values[part.tensor], part, group.size).cpu()
                for part in _matrices(group, values, options.include_out)
            )
            for group in groups
        }
        if kind == 'l2':
            scores = {name: s.sqrt() for name, s in scores.items()}
    return {
        name: _normalized(score.double(), options.normalize)
        for name, score in scores.items()
    }


def weight_scores(
    weights: dict[str, Tensor],
    groups: Sequence[PruneGroup],
    options: RoundOptions,
) -> Scores:
    """Returns the scores that units would have with the given weights."""
    holder = _Weights(weights)
    return unit_scores(holder, groups, options)


class _Weights(nn.Module):
    """Tensors under the names they have in a model."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights = weights

    def named_parameters(self, *_: Any, **__: Any) -> Any:
        return iter(self.weights.items())


def matrix_names(
    groups: Sequence[PruneGroup], tensors: dict[str, Tensor]
) -> list[str]:
    """Returns the matrices of the groups, each once and in order."""
    names = dict.fromkeys(
        part.tensor
        for group in groups
        for part in group.slices
        if tensors[part.tensor].ndim > 1
    )
    return list(names)


def element_mask(
    model: nn.Module, groups: Sequence[PruneGroup], sparsity: float
) -> dict[str, Tensor]:
    """Returns which elements a global pruning by magnitude would keep.

    Args:
        model: The trained model.
        groups: Groups whose matrices compete.
        sparsity: Fraction of all their elements that goes.

    Returns:
        Tensor name -> boolean mask, true = keep.
    """
    tensors = named_tensors(model)
    names = matrix_names(groups, tensors)
    sizes = torch.cat([tensors[n].detach().abs().flatten() for n in names])
    keep = ~lowest(sizes, round_half_up(sparsity * len(sizes)))
    parts = keep.split([tensors[n].numel() for n in names])
    return {
        name: part.view(tensors[name].shape)
        for name, part in zip(names, parts, strict=True)
    }


def _element_values(
    model: nn.Module,
    groups: Sequence[PruneGroup],
    kind: str,
    sparsity: float,
    batch: Any,
    loss_fn: LossFn | None,
) -> dict[str, Tensor]:
    """One number per element of each tensor; a unit's score is its sum."""
    if kind == 'remain':
        masks = element_mask(model, groups, sparsity)
        return {name: mask.double() for name, mask in masks.items()}
    tensors = {k: t.detach() for k, t in named_tensors(model).items()}
    names = {part.tensor for group in groups for part in group.slices}
    if kind == 'saliency':
        stats = calibrate(model, groups, {'grad'}, [batch], loss_fn)
        return {
            name: (tensors[name] * stats.grad[name]).abs().double()
            for name in names
            if name in stats.grad
        }
    power = 2 if kind == 'l2' else 1
    return {name: tensors[name].double().abs() ** power for name in names}


def _matrices(
    group: PruneGroup, values: dict[str, Tensor], include_out: bool
) -> list[Slice]:
    parts = group.slices if include_out else group.producers
    found = [
        part
        for part in parts
        if part.tensor in values and values[part.tensor].ndim > 1
    ]
    if not found:
        raise ValueError(
            f'group {group.name!r} has no matrix that writes its units, so '
            'it cannot be scored by its weights; choose another criterion'
        )
    return found


def _activations(
    model: nn.Module,
    groups: Sequence[PruneGroup],
    kind: str,
    batch: Any,
    loss_fn: LossFn | None,
) -> Scores:
    if batch is None or loss_fn is None:
        raise ValueError(f'criteria={kind!r} needs a batch of data')
    power = 2 if kind == 'act_l2' else 1
    seen: dict[str, Tensor] = {}
    hooks = []
    for name in {p.tensor for g in groups for p in g.producers}:
        path, _, leaf = name.rpartition('.')
        if leaf != 'weight':
            continue

        def look(module: nn.Module, _: Any, out: Tensor, name=name) -> None:
            dim = -1 if isinstance(module, nn.Linear) else 1
            size = out.detach().double().abs() ** power
            # One value per output channel, in the place of a weight's row.
            seen[name] = size.movedim(dim, 0).flatten(1).mean(1)

        hooks.append(model.get_submodule(path).register_forward_hook(look))
    try:
        with torch.no_grad():
            loss_fn(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    scores = {}
    for group in groups:
        sums = [
            unit_sums(seen[part.tensor], part, group.size).cpu()
            for part in group.producers
            if part.tensor in seen
        ]
        block = sum(p.block * p.copies for p in group.producers[:1])
        mean = sum(sums) / len(sums) / block
        scores[group.name] = mean if power == 1 else mean.sqrt()
    return scores


def _registered(
    model: nn.Module,
    groups: Sequence[PruneGroup],
    config: dict,
    batch: Any,
    loss_fn: LossFn | None,
) -> Scores:
    criterion = TASK_UTILS.build(config)
    batches = [] if batch is None else [batch]
    stats: Statistics = calibrate(
        model, groups, criterion.needs, batches, loss_fn
    )
    scores = {group.name: criterion(group, stats) for group in groups}
    for name, score in scores.items():
        if score is None:
            raise ValueError(
                f'{type(criterion).__name__} has no score for group '
                f'{name!r}; choose another criterion'
            )
    return {name: score.detach().cpu() for name, score in scores.items()}


def _normalized(score: Tensor, how: str | None) -> Tensor:
    if how == 'mean':
        return score / score.mean().clamp_min(1e-30)
    if how == 'l2-layer':
        return score / score.norm().clamp_min(1e-30)
    return score
