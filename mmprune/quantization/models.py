"""Models with four-bit weights, as a config names them."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ..checkpoints.reading import load_checkpoint_file
from ..checkpoints.writing import without_pretrained
from ..registry import MODELS
from .choice import OUTPUTS, choose_layers
from .integers import Scheme
from .layers import FakeQuantLinear, PackedLinear


@MODELS.register_module(name='QuantizedModel')
def build_quantized_model(
    model: dict, quantization: str | Path | Mapping, **kwargs: Any
) -> nn.Module:
    """Returns a model whose chosen layers hold packed weights.

    There is no wrapper; the weights come from a checkpoint that
    ``tools/quantize.py`` wrote.

    Args:
        model: Config of the float model, dense or pruned.
        quantization: Path of the checkpoint, or its ``meta.quantization``.
        kwargs: Further arguments of the model, as ``data_preprocessor``.

    Raises:
        ValueError: If the checkpoint is not quantized, or of another model.
    """
    if not isinstance(quantization, Mapping):
        meta = load_checkpoint_file(quantization).get('meta') or {}
        if 'quantization' not in meta:
            raise ValueError(
                f'{quantization} is not quantized (no meta.quantization); '
                'give the checkpoint that tools/quantize.py wrote'
            )
        quantization = meta['quantization']
    built = MODELS.build({**model, **kwargs})
    scheme = Scheme(**quantization['scheme'])
    for path in quantization['layers']:
        layer = linear_at(built, path)
        put(
            built,
            path,
            PackedLinear(
                layer.in_features,
                layer.out_features,
                layer.bias is not None,
                scheme,
            ),
        )
    built.quantization = dict(quantization)
    built._is_init = True
    return built


@MODELS.register_module(name='FakeQuantizedModel')
def build_fake_quantized_model(
    model: dict,
    scheme: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (OUTPUTS,),
    **kwargs: Any,
) -> nn.Module:
    """Returns a model that trains weights which will be rounded.

    There is no wrapper: names, state dict and plan are those of the model, so
    that its checkpoints load into the float model as well.

    Args:
        model: Config of the model, dense or pruned.
        scheme: Arguments of :class:`Scheme`.
        keep: Regular expressions on paths of layers that stay in float.
        kwargs: Further arguments of the model, as ``data_preprocessor``.

    Raises:
        ValueError: If no layer can be rounded.
    """
    built = MODELS.build({**model, **kwargs})
    how = Scheme(**(scheme or {}))
    for path in choose_layers(built, keep=keep).layers:
        FakeQuantLinear.take_over(linear_at(built, path), how)
    return built


def float_config(
    cfg: Config,
) -> tuple[Config, Scheme | None, Sequence[str] | None]:
    """Returns the config of the float model, and what was trained for.

    Returns:
        The config; scheme and layers kept in float of a training with
        rounded weights, ``None`` for another.
    """
    cfg = copy.deepcopy(cfg)
    model = without_pretrained(cfg.model.to_dict())
    scheme = keep = None
    if model['type'] == 'mmprune.FakeQuantizedModel':
        scheme = Scheme(**(model.get('scheme') or {}))
        keep = model.get('keep')
        kept = {k: v for k, v in model.items() if k == 'data_preprocessor'}
        model = {**model['model'], **kept}
    cfg.model = model
    return cfg, scheme, keep


def linear_at(model: nn.Module, path: str) -> nn.Linear:
    """Returns a linear layer of a model.

    Raises:
        ValueError: If there is none.
    """
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        found = 'nothing' if layer is None else type(layer).__name__
        raise ValueError(
            f'{path!r} is to be quantized, and the model has {found} there; '
            'the checkpoint belongs to another model'
        )
    return layer


def put(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Puts a layer in the place of another, in the model's mode."""
    parent, _, leaf = path.rpartition('.')
    layer.train(model.training)
    model.get_submodule(parent).add_module(leaf, layer)
