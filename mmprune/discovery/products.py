"""Rules of products: matrices, attention and convolutions."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .labels import Labels, Layers, compact, thinned, varies, varying
from .maps import one_pixel
from .rules import Call, rule


@rule('mm bmm addmm baddbmm linear mv')
def product(call: Call) -> None:
    """Matrix products, with or without a bias."""
    labels, out = call.labels, call.out
    name = call.func._schema.name.removeprefix('aten::')
    if name == 'linear':
        a, b, bias = call['input'], call['weight'], call['bias']
        b_layers = tuple(layer.t() for layer in labels.of(b))
        vector = b.ndim == 1
    else:
        bias = call.args[0] if 'add' in name else None
        a, b = call.args[-2:] if bias is None else call.args[1:3]
        b_layers = labels.of(b)
        vector = b.ndim == 1
    if vector:
        b_layers = tuple(layer.unsqueeze(-1) for layer in b_layers)
    layers = _contract(
        labels, labels.of(a), b_layers, labels.weight(a), labels.weight(b)
    )
    if vector:
        layers = [layer.squeeze(-1) for layer in layers]
    layers = [layer.expand(out.shape) for layer in layers]
    labels.set(out, labels.merge([tuple(layers), labels.of(bias)], out.shape))


def _contract(
    labels: Labels,
    a: Layers,
    b: Layers,
    a_weight: str = '',
    b_weight: str = '',
) -> list[Tensor]:
    """Layers of ``[..., n, k] @ [..., k, m]``; a term of the sum is a tie."""
    a_in = [compact(thinned(layer)) for layer in a if varies(layer, -1)]
    b_in = [compact(thinned(layer)) for layer in b if varies(layer, -2)]
    heads = []
    # A weight of its own for each head is no weight of all channels.
    a_weight = a_weight and not _in_batches(a_in)
    b_weight = b_weight and not _in_batches(b_in)
    if b_weight or a_weight:
        for layer in b_in if b_weight else a_in:
            labels.reads(layer)
    else:
        # Logits of attention: their scale belongs to the whole head.
        for layer, dim in [(x, -1) for x in a_in] + [(x, -2) for x in b_in]:
            labels.mixes(layer)
            heads.append(labels.tie_along(layer, dim))
    if not a_in or not b_in:
        for layer in a_in + b_in:
            if not (b_weight or a_weight):
                labels.fix(layer, 'multiplied with what has no channels')
    for x in a_in:
        for y in b_in:
            # Each row of x meets each column of y; that is the same as all of
            # them meeting one, at a fraction of the pairs.
            labels.tie(x, y.amax(-1).unsqueeze(-2))
            labels.tie(x.amax(-2).unsqueeze(-1), y)
    heads = [layer for layer in heads if varying(layer)]
    rest = [x.narrow(-1, 0, 1) for x in a if not varies(x, -1)]
    rest += [y.narrow(-2, 0, 1) for y in b if not varies(y, -2)]
    return heads + rest


def _in_batches(layers: list[Tensor]) -> bool:
    """Whether labels change from one matrix of a batch to the next."""
    return any(varying(x) - {x.ndim - 1, x.ndim - 2} for x in layers)


@rule(
    '_scaled_dot_product_flash_attention_for_cpu '
    '_scaled_dot_product_flash_attention '
    '_scaled_dot_product_efficient_attention '
    '_scaled_dot_product_cudnn_attention '
    '_scaled_dot_product_attention_math'
)
def attention(call: Call) -> None:
    """``softmax(q k^T) v`` over ``[..., n, d]``."""
    labels = call.labels
    q, k, v = call.args[:3]
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    logits = (*q.shape[:-1], k.shape[-2])
    keys = tuple(layer.transpose(-1, -2) for layer in labels.of(k))
    layers = _contract(labels, labels.of(q), keys)
    mask = call['attn_mask'] if call['attn_mask'] is not None else None
    weights = labels.merge(
        [tuple(x.expand(logits) for x in layers), labels.of(mask)],
        torch.Size(logits),
    )
    read = []
    for layer in weights:
        short = labels.reduce(layer, [layer.ndim - 1])
        if varying(layer) and not varying(short):
            labels.fix(layer, 'softmax over the channels')
        else:
            read.append(short.expand(logits))
    layers = _contract(labels, tuple(read), labels.of(v))
    layers = [layer.expand(out.shape) for layer in layers]
    labels.set(out, labels.merge([tuple(layers)], out.shape))


@rule('convolution convolution_overrideable _convolution')
def convolution(call: Call) -> None:
    """Convolutions of any dimension, grouped and transposed ones too."""
    transposed, groups = call['transposed'], call['groups']
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    _convolve(
        call, call['input'], call['weight'], call['bias'],
        out_dim, in_dim, groups,
    )  # fmt: skip


@rule('torchvision::deform_conv2d')
def deform_conv(call: Call) -> None:
    """Deformable convolution: offsets and their masks stay as they are."""
    x, weight, offset, mask, bias = call.args[:5]
    call.labels.fix_all([offset, mask], 'offsets of a deformable convolution')
    # (stride, padding, dilation) in two dimensions each, then the groups.
    groups, offset_groups = call.args[11], call.args[12]
    if offset_groups > 1:
        call.labels.fix_all([x], 'offset groups of a deformable convolution')
    _convolve(call, x, weight, bias, 0, 1, groups)


def _convolve(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_dim: int,
    in_dim: int,
    groups: int,
) -> None:
    labels, out = call.labels, call.out
    x_in, rest = [], []
    for layer in labels.of(x):
        layer = one_pixel(labels, layer, 2)
        (x_in if varies(layer, 1) else rest).append(_flat(layer))
    w_in = [y for y in labels.of(weight) if varies(y, in_dim)]
    w_out = [y for y in labels.of(weight) if varies(y, out_dim)]
    results = [_channels(y, out_dim, out.ndim) for y in w_out]
    if not labels.weight(weight):
        labels.fix_all([x, weight], 'the kernel is computed by the model')
    if groups == 1:
        for y in w_in:
            labels.reads(y)
            for layer in x_in:
                labels.tie(layer, _channels(y, in_dim, 2))
    elif out_dim == 0 or tuple(weight.shape[:2]) == (groups, 1):
        results = [
            _channels(y, 0, out.ndim)
            for y in labels.of(weight)
            if varies(y, 0)
        ]
        _grouped(labels, weight, x_in, results, groups)
    else:
        labels.fix_all([x, weight], 'a grouped transposed convolution')
        results = [torch.cat([y] * groups, 1) for y in results]
    shape = out.shape
    layers = [layer.expand(shape) for layer in results]
    for layer in rest:  # of the batch
        batch = layer[:, :1]
        layers.append(batch.view([-1] + [1] * (out.ndim - 1)).expand(shape))
    vector = tuple(
        layer.view([1, -1] + [1] * (out.ndim - 2)) for layer in labels.of(bias)
    )
    labels.set(out, labels.merge([tuple(layers), vector], shape))


def _flat(layer: Tensor) -> Tensor:
    """``[B, C, 1, ...]`` as ``[B, C]``."""
    return layer.reshape(layer.shape[:2])


def _channels(layer: Tensor, dim: int, ndim: int) -> Tensor:
    """One dimension of a kernel's labels as ``[1, C, 1, ...]``."""
    for other in range(layer.ndim):
        if other != dim:
            layer = layer.narrow(other, 0, 1)
    return layer.reshape([1, -1] + [1] * (ndim - 2))


def _grouped(
    labels: Labels,
    weight: Tensor,
    x_in: Iterable[Tensor],
    outputs: list[Tensor],
    groups: int,
) -> None:
    """A group of a convolution reads and writes only its own channels."""
    for output in outputs:
        own = output.reshape(1, groups, -1)
        labels.tie_along(own, 2)
        for layer in x_in:
            labels.tie(own[:, :, :1], layer.unflatten(1, (groups, -1)))
        name = labels.weight(weight)
        if name:
            path = name.rpartition('.')[0]
            labels.counts[f'{path}.groups'] = own[0, :, 0]
