"""A checkpoint, pruned or dense, becomes a model ready to use."""

import contextlib
import copy
import re
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from ..errors import blame
from ..groups import named_tensors
from ..plan import FOLDER_PLAN, PruningPlan, checkpoint_plan
from ..registry import MODELS
from .comparing import difference, weights_of, without_prefix
from .huggingface import (
    RENAMED,
    check_folder,
    is_folder,
    read_tensors,
    weight_files,
)
from .packed import is_packed, load_packed
from .reading import load_checkpoint_file
from .unfilled import all_in_state, unfilled
from .writing import (
    pruned_model_config,
    quantized_model_config,
    without_pretrained,
)


def build_model(
    cfg: Config, plan: dict | None = None, quantization: dict | None = None
) -> nn.Module:
    """Returns the untrained model of a config.

    Args:
        cfg: The config.
        plan: What is pruned, if a checkpoint says so.
        quantization: What is packed, if a checkpoint says so.

    Raises:
        ValueError: If the config has no model.
    """
    if 'model' not in cfg:
        raise ValueError(
            f'{cfg.filename or "the config"} has no `model`; give the '
            'config of a model, not of a data set or schedule'
        )
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = without_pretrained(copy.deepcopy(cfg.model))
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    if plan is not None:
        model = pruned_model_config(model, plan)
    if quantization is not None:
        model = quantized_model_config(model, quantization)
    name = cfg.filename or 'the config'
    with blame(f'the model of {name} cannot be built', cfg):
        return MODELS.build(model)


def fitted(model: dict, checkpoint: dict, path: str | Path) -> dict:
    """Returns the config of the model that a checkpoint holds."""
    if checkpoint_plan(checkpoint) is None:
        model = without_pretrained(model)
    else:
        model = pruned_model_config(model, str(path))
    if _quantization(checkpoint) is not None:
        model = quantized_model_config(model, str(path))
    return model


def load_checkpoint(path: str | Path, trust: bool = False) -> dict:
    """Returns what a checkpoint holds: a file, or the folder of a model.

    Args:
        path: A file as of :func:`load_checkpoint_file`, or a Hugging Face
            folder.
        trust: Whether to unpickle what the safe loader refuses.

    Raises:
        ValueError: If it cannot be read.
    """
    if not is_folder(path):
        return load_checkpoint_file(path, trust=trust)
    check_folder(path)
    meta = {}
    if (Path(path) / FOLDER_PLAN).is_file():
        meta['pruning_plan'] = PruningPlan.load(path).to_dict()
    return dict(meta=meta, state_dict=folder_weights(path))


def folder_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """Returns the weights of a Hugging Face folder, packed or not."""
    if is_packed(folder):
        return load_packed(folder)
    files = weight_files(folder)
    return read_tensors(files, {name: name for name in files})


def load_model(
    cfg: Config | str | Path,
    checkpoint: str | Path,
    device: str = 'cpu',
    trust: bool = False,
) -> nn.Module:
    """Returns the model with the weights of a checkpoint, in eval mode.

    A checkpoint that carries a plan is loaded into the pruned model, whether
    or not the config says so.

    Args:
        cfg: Config of the dense model, or the one written beside a pruned
            checkpoint; a path or what mmengine read from it.
        checkpoint: Path of the file.
        device: Where the model goes.
        trust: Whether to unpickle what the safe loader refuses.

    Raises:
        ValueError: If the file cannot be read or its keys or shapes differ
            from the model's.
    """
    if not isinstance(cfg, Config):
        cfg = Config.fromfile(cfg)
    loaded = load_checkpoint(checkpoint, trust)
    model = loaded_model(cfg, loaded, checkpoint)
    # Not in one line: `eval` of mmdet's distilled detectors returns nothing.
    model.to(device)
    model.eval()
    return model


def loaded_model(cfg: Config, checkpoint: dict, name: str | Path) -> nn.Module:
    """Returns the model of a config with the weights of a checkpoint.

    Raises:
        ValueError: If keys or shapes differ.
    """
    parts = cfg, checkpoint_plan(checkpoint), _quantization(checkpoint)
    # What packs weights looks at their values.
    with contextlib.nullcontext() if parts[-1] else unfilled():
        model = build_model(*parts)
    if not all_in_state(model):
        # What no file gives keeps the start that the model gives it.
        model = build_model(*parts)
    load_weights(model, checkpoint, name)
    return model


def load_weights(model: nn.Module, checkpoint: dict, name: str | Path) -> None:
    """Copies the weights of a loaded checkpoint into the model, strictly.

    The model is pruned already if the checkpoint, called ``name``, is.

    Raises:
        ValueError: If keys or shapes differ.
    """
    weights = weights_of(checkpoint, name)
    weights = without_prefix(weights, model.state_dict())
    weights = named_as(model, weights)
    problem = difference(model.state_dict(), weights)
    if problem:
        raise ValueError(f'{name} does not fit the model: {problem}')
    with blame(f'{name} cannot be loaded'):
        model.load_state_dict(weights)


def _quantization(checkpoint: dict) -> dict | None:
    meta = checkpoint.get('meta')
    return meta.get('quantization') if isinstance(meta, dict) else None


def named_as(model: nn.Module, weights: dict) -> dict:
    """Returns weights under the names that a model of transformers has.

    Its files may lack the prefix of the model without head and one of two
    names of a tied tensor, and hold constants that it computes now.
    """
    prefix = getattr(model, 'base_model_prefix', None)
    if not prefix:
        return weights
    own = named_tensors(model)
    found = {}
    for name, tensor in weights.items():
        if name not in own:
            name = RENAMED.get(name, name)
        longer = f'{prefix}.{name}'
        found[longer if name not in own and longer in own else name] = tensor
    old = getattr(model, '_keys_to_ignore_on_load_unexpected', None) or ()
    found = {
        name: tensor
        for name, tensor in found.items()
        if name in own or not any(re.search(p, name) for p in old)
    }
    tied = {id(own[name]): found[name] for name in found if name in own}
    return found | {
        name: tied[id(own[name])]
        for name in model.state_dict()
        if name not in found and id(own[name]) in tied
    }
