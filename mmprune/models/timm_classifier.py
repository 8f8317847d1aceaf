"""Image classifiers of timm as mmengine models."""

import functools
from typing import Any

from torch import nn

from ..registry import MODELS
from .classifier import Classifier
from .pretrained import load_pretrained


@MODELS.register_module(name='TimmClassifier')
def build_timm_classifier(
    model: str,
    pretrained: str | dict | None = None,
    label_smoothing: float = 0.0,
    data_preprocessor: dict | nn.Module | None = None,
    **options: Any,
) -> nn.Module:
    """Returns a timm model that mmengine can train; there is no wrapper.

    The keys of the state dict are timm's. After surgery timm's attention
    takes its widths from ``num_heads`` and ``attn_dim``, which the plan sets.

    Args:
        model: timm's name, as ``vit_small_patch16_224``.
        pretrained: ``None``; the path of a checkpoint; ``'timm'`` for timm's
            own weights, which timm fetches if they are not in its cache; or
            ``dict(source=..., ...)`` with the further options of
            :func:`mmprune.models.pretrained.load_pretrained`.
        label_smoothing: Of the cross entropy.
        data_preprocessor: As in any mmengine model.
        options: Further arguments of ``timm.create_model``, as
            ``num_classes``, ``img_size``, ``patch_size`` and ``depth``.

    Raises:
        ValueError: If timm is absent, does not know the model or an option,
            or the pretrained weights do not fit.
    """
    net = _create(model, options)
    net.__class__ = _classifier_class(type(net))
    net.adopt(data_preprocessor, label_smoothing)
    if pretrained:
        if isinstance(pretrained, str):
            pretrained = dict(source=pretrained)
        moved = load_pretrained(net, timm_name=model, **pretrained)
        net.pretrained_tensors = moved.count
    return net


@functools.cache
def _classifier_class(kind: type) -> type:
    return type(
        f'{kind.__name__}Classifier', (Classifier, kind), dict(network=kind)
    )


def _create(model: str, options: dict) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f'TimmClassifier builds {model!r} with timm; pip install timm'
        ) from error
    if not timm.is_model(model):
        near = timm.list_models(f'*{model.split("_")[0]}*')[:3]
        raise ValueError(
            f'timm {timm.__version__} has no model {model!r}'
            + (f'; it has {", ".join(near)}' if near else '')
        )
    try:
        return timm.create_model(model, pretrained=False, **options)
    except (TypeError, AssertionError) as error:
        raise ValueError(f'timm cannot build {model}: {error}') from error
