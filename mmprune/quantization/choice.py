"""Which layers of a model get four-bit weights, and why others do not."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..groups import named_tensors

# What a score or a logit comes from: few weights that matter much.
OUTPUTS = r'(^|\.)(pre_classifier|classifier|head|lm_head|score|fc)(\.|$)'

_KINDS = (
    (nn.Embedding, 'an embedding: its rows are looked up, not multiplied'),
    (nn.modules.conv._ConvNd, 'a convolution: only linear layers are packed'),
)


@dataclass(frozen=True)
class Choice:
    """What is quantized.

    Args:
        layers: Paths of the linear layers.
        left: Name of each other matrix or kernel -> why it stays in float.
    """

    layers: tuple[str, ...]
    left: dict[str, str]


def choose_layers(
    model: nn.Module,
    forward: Callable[[nn.Module], Any] | None = None,
    keep: Sequence[str] = (OUTPUTS,),
) -> Choice:
    """Returns which layers of a model can be quantized.

    Args:
        model: The model.
        forward: Runs it on an example. Layers that do not run by themselves,
            as those of ``nn.MultiheadAttention``, are found by that.
        keep: Regular expressions on paths of layers that stay in float.

    Raises:
        ValueError: If no layer can be quantized.
    """
    called = None if forward is None else _called(model, forward)
    tensors = named_tensors(model)
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    layers, left = [], {}
    for path, module in model.named_modules():
        for leaf, tensor in module.named_parameters(recurse=False):
            if tensor.ndim < 2:
                continue
            name = f'{path}.{leaf}' if path else leaf
            others = [n for n in names[id(tensor)] if n != name]
            why = _reason(path, leaf, module, keep, called, others)
            if why:
                left[name] = why
            else:
                layers.append(path)
    if not layers:
        some = '; '.join(f'{n}: {why}' for n, why in list(left.items())[:2])
        raise ValueError(f'no layer can be quantized ({some})')
    return Choice(tuple(layers), left)


def _reason(
    path: str,
    leaf: str,
    module: nn.Module,
    keep: Sequence[str],
    called: set[str] | None,
    others: list[str],
) -> str:
    """Why a matrix stays in float; empty if it does not have to."""
    for kind, why in _KINDS:
        if isinstance(module, kind):
            return why
    if not isinstance(module, nn.Linear) or leaf != 'weight':
        return f'a matrix of {type(module).__name__}, which is no linear layer'
    if others:
        return f'it is the same tensor as {others[0]}'
    for pattern in keep:
        if re.search(pattern, path):
            return (
                'an output layer: few weights, which matter much'
                if pattern == OUTPUTS
                else f'kept by {pattern}'
            )
    if called is not None and path not in called:
        return 'it does not run by itself: another module reads its weight'
    return ''


def _called(model: nn.Module, forward: Callable[[nn.Module], Any]) -> set[str]:
    found: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: found.add(path))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            forward(model)
    finally:
        for handle in handles:
            handle.remove()
    return found
