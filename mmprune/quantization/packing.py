"""A float model becomes a packed one, and a file."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..atomic_file import save_checkpoint
from ..version import __version__
from .choice import Choice
from .gptq import Run, gptq, measure_inputs
from .integers import Scheme, scales, to_integers
from .layers import PackedLinear
from .models import linear_at, put

METHODS = ('rtn', 'gptq')


def packed_copy(
    model: nn.Module,
    choice: Choice,
    scheme: Scheme,
    method: str = 'rtn',
    batches: Iterable[Any] = (),
    run: Run | None = None,
) -> nn.Module:
    """Returns a copy of a model with packed weights, in eval mode.

    Args:
        model: The float model, also one trained with rounded weights.
        choice: Its layers.
        scheme: How weights are stored.
        method: ``rtn`` rounds each weight to the nearest, ``gptq`` looks at
            data.
        batches: Calibration data, for ``gptq``.
        run: Runs the model on a batch, for ``gptq``.

    Raises:
        ValueError: If the method is another or has no data.
    """
    if method not in METHODS:
        raise ValueError(
            f'method is one of {", ".join(METHODS)}, found {method!r}'
        )
    new = copy.deepcopy(model)
    new.eval()
    moments: dict[str, Any] = {}
    if method == 'gptq':
        if run is None:
            raise ValueError('gptq looks at data; give batches and run')
        moments = measure_inputs(new, choice.layers, batches, run)
    for path in choice.layers:
        layer = linear_at(new, path)
        if method == 'gptq':
            integers, scale = gptq(
                layer.weight.cpu(), moments[path].cpu(), scheme.group_size
            )
        else:
            scale = scales(layer.weight, scheme.group_size)
            integers = to_integers(layer.weight, scale, scheme.group_size)
        packed = PackedLinear.of(layer, integers, scale, scheme)
        put(new, path, packed.to(layer.weight.device))
    new.quantization = dict(
        scheme=scheme.to_dict(), layers=list(choice.layers), method=method
    )
    return new


def sizes(model: nn.Module) -> dict[str, int]:
    """Returns the bytes of a quantized model.

    Returns:
        ``packed`` of its packed layers, biases included, ``packed_float32``
        of the same layers in float, ``rest`` and ``total``.
    """
    packed = before = 0
    for module in model.modules():
        if isinstance(module, PackedLinear):
            mine = module.state_dict().values()
            packed += sum(t.numel() * t.element_size() for t in mine)
            biases = 0 if module.bias is None else module.out_features
            before += 4 * (module.in_features * module.out_features + biases)
    total = sum(
        t.numel() * t.element_size() for t in model.state_dict().values()
    )
    return dict(
        packed=packed,
        packed_float32=before,
        rest=total - packed,
        total=total,
    )


def save_quantized(
    model: nn.Module, path: str | Path, meta: Mapping[str, Any] | None = None
) -> None:
    """Writes a quantized model, whole or not at all.

    The file says which layers are packed and how, and carries the plan of a
    pruned model, so that it loads into the model of the dense config.

    Args:
        model: From :func:`packed_copy`.
        path: Where.
        meta: Of the float checkpoint; plain entries are carried on.
    """
    plain = {
        key: value
        for key, value in (meta or {}).items()
        if isinstance(value, str | int | float | bool)
        or key in ('dataset_meta',)
    }
    plan = getattr(model, 'pruning_plan', None)
    if plan is not None:
        plain['pruning_plan'] = plan.to_dict()
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    checkpoint = dict(
        meta={
            **plain,
            'mmprune_version': __version__,
            'quantization': model.quantization,
        },
        state_dict=weights,
    )
    save_checkpoint(checkpoint, path)
