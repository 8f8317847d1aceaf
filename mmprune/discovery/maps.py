"""Rules of maps: reductions, pooling, sampling and norms."""

from collections.abc import Iterable

from torch import Tensor

from .labels import Labels, Layers, tensors_in, varies, varying
from .rules import Call, rule


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
            layer = one_pixel(labels, layer, channel + 1)
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
        one_pixel(labels, layer, 2).expand(call.out.shape)
        for layer in labels.of(call['input'])
    ]
    rows = [row.expand(call.out.shape) for row in rows]
    labels.set(
        call.out, labels.merge([tuple(layers), tuple(rows)], call.out.shape)
    )


def one_pixel(labels: Labels, layer: Tensor, start: int) -> Tensor:
    """Returns a layer with size 1 from a dimension on; channels there stay."""
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
