"""One pass over data, and what it leaves for the criteria."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .groups import PruneGroup, named_tensors


@dataclass
class Statistics:
    """What criteria may ask for.

    Args:
        tensors: Every parameter and buffer of the dense model by name.
        grad: Parameter name -> gradient of the mean calibration loss.
        kinds: Module path -> class of the module, to tell norm layers.
        num_batches: Batches seen.
    """

    tensors: dict[str, Tensor]
    grad: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[str, type] = field(default_factory=dict)
    num_batches: int = 0


def calibrate(
    model: nn.Module,
    groups: Iterable[PruneGroup],
    needs: set[str],
    batches: Iterable[Any] = (),
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
) -> Statistics:
    """Returns the statistics that a criterion needs.

    Gradients are taken of every parameter that a group slices, also of those
    that training freezes; the model, its flags and gradients are left as
    they were.

    Args:
        model: The dense model, in the mode in which it is to be measured.
        groups: The groups that will be scored.
        needs: ``set()`` or ``{'grad'}``.
        batches: Calibration data; read only if something needs it.
        loss_fn: Returns the scalar loss of the model on a batch.

    Raises:
        ValueError: If gradients are needed and there is no data or loss, or
            if a group gets no gradient at all.
    """
    stats = Statistics(
        tensors={k: t.detach() for k, t in named_tensors(model).items()},
        kinds={path: type(m) for path, m in model.named_modules()},
    )
    unknown = needs - {'grad'}
    if unknown:
        raise ValueError(f'no statistic is called {sorted(unknown)}')
    if 'grad' in needs:
        _gradients(model, list(groups), batches, loss_fn, stats)
    return stats


def _gradients(
    model: nn.Module,
    groups: list[PruneGroup],
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor] | None,
    stats: Statistics,
) -> None:
    if loss_fn is None:
        raise ValueError(
            'a criterion that uses gradients needs a loss; give loss_fn'
        )
    params = dict(model.named_parameters(remove_duplicate=False))
    names = {s.tensor for g in groups for s in g.slices} & params.keys()
    before = {n: params[n].requires_grad for n in names}
    try:
        for name in names:
            params[name].requires_grad_(True)
        for batch in batches:
            loss = loss_fn(model, batch)
            if not torch.isfinite(loss):
                raise ValueError(
                    f'the calibration loss is {loss.item()}; check weights '
                    'and data'
                )
            ordered = sorted(names)
            grads = torch.autograd.grad(
                loss, [params[n] for n in ordered], allow_unused=True
            )
            stats.num_batches += 1
            for name, grad in zip(ordered, grads, strict=True):
                if grad is not None:
                    total = stats.grad.get(name)
                    stats.grad[name] = grad if total is None else total + grad
    finally:
        for name, flag in before.items():
            params[name].requires_grad_(flag)
    if not stats.num_batches:
        raise ValueError(
            'a criterion that uses gradients needs calibration data; none '
            'was given'
        )
    for grad in stats.grad.values():
        grad /= stats.num_batches
    for group in groups:
        if not any(s.tensor in stats.grad for s in group.slices):
            raise ValueError(
                f'group {group.name!r}: the calibration loss does not depend '
                'on it, so it has no gradient; protect it or choose a '
                'criterion without gradients'
            )
