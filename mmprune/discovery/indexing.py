"""Rules of what is picked, written or joined by position."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .labels import thinned, varies, varying
from .rules import Call, rule


@rule('constant_pad_nd')
def pad(call: Call) -> None:
    """A border belongs to its channel; new channels have no label."""
    shape, layers = call.out.shape, []
    for layer in call.labels.of(call.args[0]):
        borders = list(call['pad'])
        for dim in range(layer.ndim):
            at = 2 * (layer.ndim - 1 - dim)
            if at < len(borders) and not varies(layer, dim):
                borders[at : at + 2] = 0, 0
                layer = layer.narrow(dim, 0, 1)
        layers.append(torch.constant_pad_nd(layer, borders).expand(shape))
    call.labels.set(call.out, layers)


@rule('index_put _index_put_impl')
def put(call: Call) -> None:
    """Rows written by an index: their channels are those of the others."""
    labels, out = call.labels, call.out
    lead, spans, wide = _written(call['indices'])
    rest = out.ndim - lead - spans
    layers = []
    for layer in labels.of(call['values']):
        missing = lead + wide + rest - layer.ndim
        layer = layer.reshape([1] * missing + list(layer.shape))
        if varying(layer) & set(range(lead, lead + wide)):
            labels.fix(layer, 'positions are picked by an index')
            continue
        for _ in range(wide):
            layer = layer.select(lead, 0)
        for _ in range(spans):
            layer = layer.unsqueeze(lead)
        layers.append(layer)
    if layers or labels.of(out):
        known = labels.of(call.args[0])
        labels.set(out, labels.merge([known, tuple(layers)], out.shape))


def _written(indices: Sequence[Tensor | None]) -> tuple[int, int, int]:
    """Where indices stand: dimensions before them, theirs, those of values.

    What stands between the first and the last index counts as theirs.
    """
    given = [i for i, index in enumerate(indices) if index is not None]
    lead, spans, wide = given[0], 0, 1
    for index in indices[lead : given[-1] + 1]:
        truth = index is not None and index.dtype in (torch.bool, torch.uint8)
        spans += index.ndim if truth else 1
        if index is not None and not truth:
            wide = max(wide, index.ndim)
    gaps = len(range(lead, given[-1] + 1)) - len(given)
    if gaps:  # then values have the indexed dimensions in front
        return 0, lead + spans, wide + lead + gaps
    return lead, spans, wide


@rule(
    'scatter scatter_add scatter_reduce index_add index_copy index_reduce '
    'index_fill'
)
def scatter(call: Call) -> None:
    """Rows added at an index: along their dimension nothing can go."""
    labels, out, dim = call.labels, call.out, call['dim'] % call.out.ndim
    source = call['src'] if call['src'] is not None else call['source']
    operands = []
    for tensor in (call.args[0], source):
        layers = []
        for layer in labels.of(tensor):
            if varies(layer, dim):
                labels.fix(layer, 'positions are picked by an index')
            else:
                layers.append(layer.narrow(dim, 0, 1).expand(out.shape))
        operands.append(tuple(layers))
    labels.set(out, labels.merge(operands, out.shape))


@rule('cat stack')
def cat(call: Call) -> None:
    """One behind the other; what meets in the other dimensions is tied."""
    labels, out = call.labels, call.out
    dim = (call['dim'] or 0) % out.ndim
    operands = []
    for tensor in call.args[0]:
        layers = labels.of(tensor)
        if out.ndim > tensor.ndim and tensor.numel():
            layers = tuple(layer.unsqueeze(dim) for layer in layers)
        size = tensor.shape[dim] if out.ndim == tensor.ndim else 1
        operands.append((size, layers))
    slots: list[tuple[set[int], list[Tensor | None]]] = []
    for i, (_, layers) in enumerate(operands):
        for layer in layers:
            dims = varying(layer)
            for slot_dims, slot in slots:
                if slot[i] is None and dims & slot_dims:
                    slot[i] = layer
                    slot_dims |= dims
                    break
            else:
                slot = [None] * len(operands)
                slot[i] = layer
                slots.append((dims, slot))
    joined = []
    for dims, slot in slots:
        if dim not in dims:
            first = next(layer for layer in slot if layer is not None)
            first = first.narrow(dim, 0, 1)
            for layer in slot:
                if layer is not None:
                    first = labels.tie(first, layer.narrow(dim, 0, 1))
            joined.append(first.expand(out.shape))
            continue
        parts = []
        for (size, _), layer in zip(operands, slot, strict=True):
            shape = [*out.shape[:dim], size, *out.shape[dim + 1 :]]
            if layer is None:
                layer = torch.zeros([1] * out.ndim, dtype=torch.long)
            parts.append(layer.expand(shape))
        joined.append(thinned(torch.cat(parts, dim)))
    labels.set(out, joined)


@rule('index index_select gather take_along_dim')
def pick(call: Call) -> None:
    """Positions picked by an index: along its dimensions nothing can go."""
    labels, tensor = call.labels, call.args[0]
    dims = _indexed(call)
    layers = []
    for layer in labels.of(tensor):
        if dims & varying(layer):
            labels.fix(layer, 'positions are picked by an index')
            continue
        layers.append(thinned(call.func(layer, *call.args[1:], **call.kwargs)))
    labels.set(call.out, layers)


def _indexed(call: Call) -> set[int]:
    if call['indices'] is None:
        return {call['dim'] % max(call.args[0].ndim, 1)}
    dims, at = set(), 0
    for index in call['indices']:
        wide = 1
        if index is not None:
            if index.dtype in (torch.bool, torch.uint8):
                wide = index.ndim
            dims |= set(range(at, at + wide))
        at += wide
    return dims


@rule('embedding')
def embedding(call: Call) -> None:
    """Rows of a table: the table keeps its rows."""
    labels, out = call.labels, call.out
    layers = []
    for layer in labels.of(call.args[0]):
        if varies(layer, 0):
            labels.fix(layer, 'rows of a table are looked up')
        else:
            layers.append(layer[0].expand(out.shape))
    labels.set(out, layers)
