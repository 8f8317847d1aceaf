"""Channels of any convolutional part, discovered by torch-pruning.

The dependency graph is asked once and turned into plain groups; plan,
surgery, reload and training never trace again.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..groups import PruneGroup, Slice
from ..registry import FUNCTIONS


@FUNCTIONS.register_module()
def traced_groups(
    model: nn.Module,
    forward: Callable[[nn.Module], Any],
    *,
    prefix: str = '',
) -> Iterator[PruneGroup]:
    """Yields the groups of coupled channels of the convolutions.

    Channels that the outputs of ``forward`` show have no consumer here and
    come with a ``dense`` reason, as do channels whose coupling cannot be
    told by slices. The model's flags and modes are left as they were.

    Args:
        model: The part to trace, as a detector's backbone and neck.
        forward: Runs the part on an example and returns its outputs; small
            inputs do, only the coupling is read.
        prefix: Put before every name, where ``model`` is a part of another.
    """
    # Here, because it imports all of timm, which other commands do not need.
    import torch_pruning

    with _traceable(model):
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(
            model,
            example_inputs=torch.zeros(1),
            forward_fn=lambda part, _: _outputs(part, forward),
            verbose=False,
        )
        names = {m: n for n, m in model.named_modules()}
        found = [
            _group(graph, group, names, prefix)
            for group in graph.get_all_groups(
                root_module_types=(nn.modules.conv._ConvNd,)
            )
        ]
    # The graph is walked from the output; people read from the input.
    order = {prefix + n: i for i, n in enumerate(names.values())}
    yield from sorted(found, key=lambda g: order[g.name])


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """Autograd is on; modes and flags come back afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for param, flag in flags:
            param.requires_grad_(flag)


def _outputs(
    model: nn.Module, forward: Callable[[nn.Module], Any]
) -> list[torch.Tensor]:
    # Only here: backbones of mmdet freeze their stages in `eval()` again,
    # and what needs no gradient is not in the graph.
    for param in model.parameters():
        param.requires_grad_(True)
    return _tensors(forward(model))


def _tensors(outputs: Any) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [t for value in values for t in _tensors(value)]


def _group(
    graph: Any,
    coupled: Any,
    names: dict[nn.Module, str],
    prefix: str,
) -> PruneGroup:
    size = len(coupled[0].idxs)
    producers, consumers, attrs, dense = [], [], {}, ''
    writers = []
    for item in coupled:
        module = item.dep.target.module
        if isinstance(module, nn.Parameter):
            dense = 'a bare parameter is coupled with the channels'
            continue
        if module not in names:
            continue  # an operation without weights: add, concat, flatten
        path = prefix + names[module]
        writes = graph.is_out_channel_pruning_fn(item.dep.handler)
        kind, why = _layer(module, writes)
        dense = dense or why
        if kind == 'writer':
            writers.append(path)
        elif kind == 'depthwise':
            attrs[f'{path}.groups'] = 1
        parts = _slices(path, module, kind, item.idxs, item.root_idxs, size)
        if parts is None:
            dense = dense or f'irregular coupling of channels with {path}'
            continue
        (consumers if kind == 'reader' else producers).extend(parts)
    if not consumers:
        dense = dense or 'the channels are an output of the traced part'
    order = [prefix + n for n in names.values()]
    return PruneGroup(
        name=min(writers, key=order.index),
        granularity='channel',
        size=size,
        producers=_unique(producers),
        consumers=_unique(consumers),
        attrs=attrs,
        dense=dense,
    )


def _layer(module: nn.Module, writes: bool) -> tuple[str, str]:
    """Returns what a layer is to the channels, and why it forbids removal."""
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.groups == 1:
            return ('writer' if writes else 'reader'), ''
        if module.groups == module.in_channels == module.out_channels:
            return 'depthwise', ''
        return ('writer' if writes else 'reader'), 'grouped convolution'
    if isinstance(module, nn.Linear):
        return ('writer' if writes else 'reader'), ''
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return 'norm', ''
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        name = type(module).__name__
        return 'norm', f'{name} over the channels: its statistics would change'
    if not list(module.parameters(recurse=False)):
        return 'norm', ''
    return 'norm', f'no rule for the layer type {type(module).__name__}'


def _slices(
    path: str,
    module: nn.Module,
    kind: str,
    positions: list[int],
    units: list[int],
    size: int,
) -> list[Slice] | None:
    """Returns the slices of all tensors of a layer, ``None`` if irregular."""
    pattern = _pattern(positions, units, size)
    if pattern is None:
        return None
    transposed = getattr(module, 'transposed', False)
    dim = 0
    tensors = dict(module.named_parameters(recurse=False))
    if kind == 'reader':
        tensors = {'weight': module.weight}
        dim = 0 if transposed else 1
    elif transposed and kind == 'writer':
        dim = 1
    tensors |= dict(module.named_buffers(recurse=False))
    return [
        Slice(f'{path}.{leaf}', dim if leaf == 'weight' else 0, **place)
        for leaf, tensor in tensors.items()
        if tensor is not None and tensor.ndim
        for place in pattern
    ]


def _pattern(
    positions: list[int], units: list[int], size: int
) -> list[dict[str, int]] | None:
    """Returns block, offset and copies of each slice, ``None`` if irregular.

    Args:
        positions: Positions along the dimension.
        units: The unit that each position belongs to.
        size: Number of units.
    """
    owned = defaultdict(list)
    for unit, position in zip(units, positions, strict=True):
        owned[unit].append(position)
    if set(owned) != set(range(size)):
        return None
    first = sorted(owned[0])
    # Neighbouring positions of one unit are a block (a flattened map); each
    # further run is a copy elsewhere (a concatenation of the same channels).
    runs = [[first[0]]]
    for position in first[1:]:
        if position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    pattern = [{'block': len(run), 'offset': run[0]} for run in runs]
    covered = defaultdict(list)
    for place in pattern:
        index = Slice('', **place).index(range(size), size)
        for unit, block in enumerate(index.view(size, -1).tolist()):
            covered[unit].extend(block)
    alike = all(sorted(covered[u]) == sorted(owned[u]) for u in range(size))
    return pattern if alike else None


def _unique(parts: list[Slice]) -> tuple[Slice, ...]:
    return tuple(dict.fromkeys(parts))
