"""Pruned models on disk: their checkpoints, and configs that build them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ..atomic_file import save_checkpoint
from ..plan import PruningPlan
from ..version import __version__
from .normalization import normalization_of_training

# Configs around that of the model whose units are pruned.
_ROUNDING = ('mmprune.FakeQuantizedModel', 'mmprune.QuantizedModel')


def save_pruned(
    model: nn.Module,
    plan: PruningPlan,
    path: str | Path,
    cfg: Config | None = None,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Writes a pruned model, whole or not at all.

    The file carries its plan, so that it can be loaded into the model of the
    dense config, and nothing that a safe loader refuses.

    Args:
        model: The pruned model.
        plan: What was removed from it.
        path: Where.
        cfg: Config of the dense model, kept as text.
        meta: Meta of the dense checkpoint; plain entries are carried on.
    """
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    meta = _meta(meta or {}, cfg, plan)
    save_checkpoint(dict(meta=meta, state_dict=weights), path)


def pruned_model_config(
    model: dict,
    plan: dict | str | Path,
    data_preprocessor: dict | None = None,
) -> dict:
    """Returns the config of a model after surgery.

    Args:
        model: Config of the dense model, or of a pruned one whose plan is to
            be another.
        plan: What ``mmprune.PrunedModel`` takes.
        data_preprocessor: Where the config has it beside the model.
    """
    model = without_pretrained(model)
    if model['type'] in _ROUNDING:
        inner = pruned_model_config(model['model'], plan, data_preprocessor)
        return {**model, 'model': inner}
    if model['type'] != 'mmprune.PrunedModel':
        model = dict(type='mmprune.PrunedModel', model=model)
    new = {**model, 'plan': plan}
    if data_preprocessor is not None:
        new['data_preprocessor'] = data_preprocessor
    return new


def quantized_model_config(
    model: dict, quantization: dict | str | Path
) -> dict:
    """Returns the config of a model with packed weights.

    Args:
        model: Config of the float model, dense or pruned, or of one that was
            trained with rounded weights.
        quantization: What ``mmprune.QuantizedModel`` takes.
    """
    model = without_pretrained(model)
    if model['type'] in _ROUNDING:
        kept = ('type', 'model', 'scheme', 'keep', 'quantization')
        more = {k: v for k, v in model.items() if k not in kept}
        model = {**model['model'], **more}
    return dict(
        type='mmprune.QuantizedModel', model=model, quantization=quantization
    )


def without_pretrained(model: dict) -> dict:
    """Returns the config of a model whose weights a checkpoint gives.

    Where it is used, those that its training began with need not be there,
    nor the teacher that it learnt from.
    """
    if model.get('type') == 'mmprune.DistilledModel':
        kept = {k: v for k, v in model.items() if k == 'data_preprocessor'}
        return without_pretrained({**model['student'], **kept})
    return {**model, 'pretrained': None} if model.get('pretrained') else model


def name_imports(cfg: Config) -> None:
    """Makes a config import mmprune when it is read, in place."""
    imports = dict(cfg.get('custom_imports') or dict(imports=[]))
    names = imports['imports']
    names = [names] if isinstance(names, str) else names
    imports['imports'] = sorted({'mmprune', *names})
    cfg.custom_imports = imports


def _meta(
    meta: Mapping[str, Any], cfg: Config | None, plan: PruningPlan
) -> dict:
    plain = {
        k: v
        for k, v in (meta.items() if isinstance(meta, Mapping) else ())
        if isinstance(v, str | int | float | bool) or k == 'dataset_meta'
    }
    text = {} if cfg is None else {'cfg': cfg.pretty_text}
    return {
        **plain,
        **text,
        # That of the training: the config may be another one's.
        'img_norm_cfg': normalization_of_training(meta),
        'mmprune_version': __version__,
        # As text: torch.load takes its time over ten thousands of numbers.
        'pruning_plan': plan.to_json(),
    }
