"""What operations do to labels: one rule for each kind of ATen operation.

Here are those that compute element by element or move data; the others are
in ``indexing``, ``maps`` and ``products``.

An operation without a rule holds the channels it sees in the model, which is
never wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .labels import Labels, Layers, tensors_in, thinned, varies


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
