"""What operations do to labels: one rule for each kind of ATen operation.

An operation without a rule holds the channels it sees in the model, which is
never wrong.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .labels import Labels, Layers, tensors_in, thinned, varies, varying


@dataclass(frozen=True)
class Call:
    """An operation that ran."""

    labels: Labels
    func: Any  # as a TorchDispatchMode sees it
    args: tuple
    kwargs: dict
    out: Any

    def __getitem__(self, name: str) -> Any:
        """Returns an argument by its name in the operation's schema."""
        for i, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                if i < len(self.args):
                    return self.args[i]
                return self.kwargs.get(name, argument.default_value)
        return None

    def layers(self, name: str) -> Layers:
        """Returns the layers of an argument."""
        return self.labels.of(self[name])


Rule = Callable[[Call], None]
RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Registers a function for operations, named without their overload."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names.split(), function))
        return function

    return register


def apply_rule(call: Call) -> None:
    """Labels what an operation returned."""
    labels, schema = call.labels, call.func._schema
    name = schema.name.removeprefix('aten::')
    found = RULES.get(name) or RULES.get(name.rstrip('_'))
    if found is None and torch.Tag.pointwise in call.func.tags:
        found = pointwise
    inputs = list(tensors_in([call.args, call.kwargs]))
    if name == 'mul' and any(
        type(a) in (int, float) and not a for a in call.args
    ):
        return  # `unused.sum() * 0`, which keeps DDP content
    labelled = any(labels.of(tensor) for tensor in inputs)
    if not labelled and found in (pointwise, move, same):
        labels.pass_reduced(inputs, tensors_in(call.out))
    labels.use(inputs)
    written = found is move and labels.is_writable(call.args[0])
    if found is new or found is copy or written:
        found(call)
    elif not labelled:
        return
    elif found is not None:
        found(call)
    else:
        labels.fix_all(inputs, f'no rule for the operation {name}')


@rule(
    'zeros ones empty full arange linspace eye zeros_like ones_like '
    'empty_like full_like new_zeros new_ones new_empty new_full '
    'new_empty_strided empty_strided rand randn rand_like randn_like '
    'scalar_tensor fill zero'
)
def new(call: Call) -> None:
    """A tensor of constants, whose parts are often written afterwards."""
    out = call.out
    wanted = isinstance(out, Tensor) and out.ndim and out.is_floating_point()
    if wanted and not call.labels.is_writable(out):
        call.labels.make_writable(out)


@rule('copy')
def copy(call: Call) -> None:
    """Values written into a tensor or a view of one."""
    labels, out = call.labels, call.args[0]
    layers = [layer.expand(out.shape) for layer in labels.of(call.args[1])]
    if layers or labels.of(out):
        labels.set(out, layers)


@rule(
    'hardtanh hardswish hardsigmoid leaky_relu elu celu selu silu mish gelu '
    'softplus threshold log_sigmoid _prelu_kernel rrelu_with_noise '
    'masked_fill lerp addcmul addcdiv where clamp'
)
def pointwise(call: Call) -> None:
    """Elementwise: the channels of all operands are the same channels."""
    labels = call.labels
    inputs = list(tensors_in([call.args, call.kwargs]))
    layers = [labels.of(tensor) for tensor in inputs]
    for result in tensors_in(call.out):
        labels.set(result, labels.merge(layers, result.shape))


@rule(
    '_unsafe_view view reshape _reshape_alias permute transpose t expand '
    'squeeze unsqueeze slice select unbind clone contiguous detach alias '
    'flip roll repeat unfold narrow diagonal movedim lift_fresh '
    'pixel_shuffle pixel_unshuffle channel_shuffle tril triu im2col '
    'split_with_sizes'
)
def move(call: Call) -> None:
    """Data changes its place: labels take the same way."""
    labels, tensor = call.labels, call.args[0]
    results = list(tensors_in(call.out))
    if labels.is_writable(tensor) and call.func.is_view:
        for i, result in enumerate(results):
            labels.share_storage(
                result,
                tensor,
                lambda store, i=i: list(tensors_in(_moved(call, store)))[i],
            )
        return
    layers: list[list[Tensor]] = [[] for _ in results]
    for layer in labels.of(tensor):
        moved = tensors_in(_moved(call, layer))
        for parts, part in zip(layers, moved, strict=True):
            parts.append(part.long())
    for result, parts in zip(results, layers, strict=True):
        labels.pass_weight(result, tensor)
        labels.set(result, [thinned(part) for part in parts])


def _moved(call: Call, layer: Tensor) -> Any:
    name = call.func._schema.name.removeprefix('aten::')
    if name in ('view', '_unsafe_view', '_reshape_alias'):
        call.labels.split_into(layer, call.out.shape)
        # Labels need not lie in memory as the data does.
        return layer.reshape(call.out.shape)
    if name == 'im2col':
        layer = layer.double()  # which has no version for integers
    return call.func(layer, *call.args[1:], **call.kwargs)


@rule('split unsafe_split chunk unsafe_chunk')
def split(call: Call) -> None:
    """Equal parts stay equal: their channels go together."""
    tensor, dim = call.args[0], call['dim'] or 0
    for layer in call.labels.of(tensor):
        parts = call.func(layer, *call.args[1:], **call.kwargs)
        if varies(layer, dim) and parts[0].shape == parts[-1].shape:
            for part in parts[1:]:
                call.labels.tie(parts[0], part)
    move(call)


@rule('as_strided')
def restride(call: Call) -> None:
    """Another view of the memory; known only where the shape stays."""
    if call.out.shape == call.args[0].shape:
        same(call)
    else:
        call.labels.fix_all(call.args[:1], 'memory is viewed by strides')


@rule('_to_copy native_dropout bernoulli')
def same(call: Call) -> None:
    """The same elements in another type."""
    for result in tensors_in(call.out):
        call.labels.set(result, call.labels.of(call.args[0]))
        call.labels.pass_weight(result, call.args[0])


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
    labels, out, values = call.labels, call.out, call['values']
    left = out.ndim - len(_indexed(call))
    layers = []
    for layer in labels.of(values):
        if min(varying(layer), default=0) < layer.ndim - left:
            labels.fix(layer, 'positions are picked by an index')
            continue
        for _ in range(layer.ndim - left):
            layer = layer.select(0, 0)
        layers.append(layer)
    if layers or labels.of(out):
        known = labels.of(call.args[0])
        labels.set(out, labels.merge([known, tuple(layers)], out.shape))


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


@rule(
    'sum mean amax amin max min prod var std var_mean std_mean any all norm '
    'linalg_vector_norm logsumexp argmax argmin sort topk argsort median '
    'cumsum cumprod cummax cummin _softmax _log_softmax _safe_softmax nonzero '
    'masked_select count_nonzero kthvalue mode'
)
def reduce(call: Call) -> None:
    """Values of a dimension are reduced or compared with each other."""
    labels, tensor = call.labels, call.args[0]
    name = call.func._schema.name.removeprefix('aten::').strip('_')
    dims = call['dim']
    if dims is None or dims == []:
        # The last one, or all.
        last = name in ('sort', 'topk', 'argsort', 'median', 'kthvalue')
        dims = [-1] if last else range(tensor.ndim)
    elif isinstance(dims, int):
        dims = [dims]
    dims = sorted({dim % tensor.ndim for dim in dims})
    kept, lost = [], []
    for layer in labels.of(tensor):
        short = labels.reduce(layer, dims)
        if varying(layer) and not varying(short):
            lost.append(layer)
        else:
            kept.append(short)
    for result in tensors_in(call.out):
        for layer in lost:
            labels.note_reduced(result, layer, f'{name} over the channels')
        layers = kept
        if result.ndim < tensor.ndim:
            layers = [layer.reshape(_dropped(layer, dims)) for layer in kept]
        if result.ndim:
            labels.set(
                result, [layer.expand(result.shape) for layer in layers]
            )


def _dropped(layer: Tensor, dims: Iterable[int]) -> list[int]:
    return [n for d, n in enumerate(layer.shape) if d not in dims]


@rule(
    'upsample_nearest1d upsample_nearest2d upsample_nearest3d '
    '_upsample_nearest_exact2d upsample_bilinear2d _upsample_bilinear2d_aa '
    'upsample_bicubic2d upsample_linear1d upsample_trilinear3d avg_pool1d '
    'avg_pool2d avg_pool3d max_pool2d max_pool3d max_pool2d_with_indices '
    'max_pool3d_with_indices adaptive_avg_pool1d adaptive_avg_pool2d '
    '_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d '
    'reflection_pad2d replication_pad2d '
    'torchvision::roi_align torchvision::roi_pool torchvision::ps_roi_pool'
)
def spatial(call: Call) -> None:
    """Pixels of each channel by itself: the channels are dimension 1.

    Pooling takes ``[C, H, W]`` as well as ``[B, C, H, W]``.
    """
    labels, tensor = call.labels, call.args[0]
    labels.fix_all(
        tensors_in([call.args[1:], call.kwargs]), 'positions to sample at'
    )
    for result in tensors_in(call.out):
        layers = []
        for layer in labels.of(tensor):
            channel = tensor.ndim - (1 + _space(call, tensor))
            layer = _one_pixel(labels, layer, channel + 1)
            if layer.shape[0] != result.shape[0]:
                layer = layer.narrow(0, 0, 1)  # regions of a picture
            layers.append(layer.expand(result.shape))
        labels.set(result, layers)


@rule('grid_sampler_2d grid_sampler_3d')
def sample(call: Call) -> None:
    """Pixels picked by computed positions, in each row of the batch.

    Where the batch holds heads, as in deformable attention, what computes
    their positions goes with them; else it stays.
    """
    labels, grid = call.labels, call['grid']
    rows = []
    for layer in labels.of(grid):
        row = labels.reduce(layer, range(1, grid.ndim))
        if varying(row):
            labels.mixes(layer)
            rows.append(row.view([-1] + [1] * (call.out.ndim - 1)))
        else:
            labels.fix(layer, 'positions to sample at')
    labels.use([grid])
    layers = [
        _one_pixel(labels, layer, 2).expand(call.out.shape)
        for layer in labels.of(call['input'])
    ]
    rows = [row.expand(call.out.shape) for row in rows]
    labels.set(
        call.out, labels.merge([tuple(layers), tuple(rows)], call.out.shape)
    )


def _one_pixel(labels: Labels, layer: Tensor, start: int) -> Tensor:
    """A layer with size 1 from a dimension on; channels there stay."""
    short = labels.reduce(layer, range(start, layer.ndim))
    if varying(layer) and not varying(short):
        labels.fix(layer, 'channels lie in the pixels of a map')
    return short


def _space(call: Call, tensor: Tensor) -> int:
    """Number of spatial dimensions of an operation."""
    for digit in '123':
        if f'{digit}d' in call.func._schema.name:
            return int(digit)
    return tensor.ndim - 2


@rule(
    'native_batch_norm cudnn_batch_norm _native_batch_norm_legit '
    '_native_batch_norm_legit_no_training _batch_norm_with_update'
)
def batch_norm(call: Call) -> None:
    """Each channel of dimension 1 by itself."""
    x, out = call['input'], call.out[0]
    _per_channel(call, x, out, call.labels.of(x))


@rule('native_group_norm')
def group_norm(call: Call) -> None:
    """The channels of a norm group share statistics: they go together."""
    labels, x, groups = call.labels, call['input'], call['group']
    for layer in labels.of(x):
        if varies(layer, 1):
            parts = layer.unflatten(1, (groups, -1))
            labels.tie_along(parts, 2)
            if weight := labels.weight(call['weight']):
                path = weight.rpartition('.')[0]
                atoms = labels.of(call['weight'])[0].view(groups, -1)
                labels.counts[f'{path}.num_groups'] = atoms[:, 0]
                labels.tie_along(atoms, 1)
    _per_channel(call, x, call.out[0], labels.of(x))


@rule('native_layer_norm')
def layer_norm(call: Call) -> None:
    """Statistics over the last dimensions."""
    labels, x = call.labels, call['input']
    last = range(x.ndim - len(call['normalized_shape']), x.ndim)
    for layer in labels.of(x):
        if varying(layer) & set(last):
            labels.fix(
                layer,
                'LayerNorm over the channels: its statistics would change',
            )
    weights = [labels.of(call[name]) for name in ('weight', 'bias')]
    out = call.out[0]
    labels.set(out, labels.merge([labels.of(x), *weights], out.shape))


def _per_channel(call: Call, x: Tensor, out: Tensor, layers: Layers) -> None:
    labels = call.labels
    shape = [1, x.shape[1]] + [1] * (x.ndim - 2)
    vectors = [
        tuple(layer.view(shape) for layer in labels.of(call[name]))
        for name in ('weight', 'bias', 'running_mean', 'running_var')
        if isinstance(call[name], Tensor)
    ]
    labels.set(out, labels.merge([layers, *vectors], out.shape))


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
    a_in = [layer for layer in a if varies(layer, -1)]
    b_in = [layer for layer in b if varies(layer, -2)]
    heads = []
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
            labels.tie(x.unsqueeze(-1), y.unsqueeze(-3))
    heads = [layer for layer in heads if varying(layer)]
    rest = [x.narrow(-1, 0, 1) for x in a if not varies(x, -1)]
    rest += [y.narrow(-2, 0, 1) for y in b if not varies(y, -2)]
    return heads + rest


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
        layer = _one_pixel(labels, layer, 2)
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
    elif out_dim == 0 or weight.shape[1] == 1:
        results = [
            _channels(y, 0, out.ndim)
            for y in labels.of(weight)
            if varies(y, 0)
        ]
        _grouped(labels, weight, x_in, results, groups)
    else:
        labels.fix_all([x, weight], 'a grouped transposed convolution')
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
