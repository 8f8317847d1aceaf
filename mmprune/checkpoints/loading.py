"""A checkpoint, pruned or dense, becomes a model ready to use."""

import copy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from ..errors import blame
from ..plan import checkpoint_plan
from ..registry import MODELS
from .comparing import difference, without_prefix
from .reading import load_checkpoint_file
from .writing import pruned_model_config, without_pretrained


def build_model(cfg: Config, plan: dict | None = None) -> nn.Module:
    """Returns the untrained model of a config, pruned if a plan is given.

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
    name = cfg.filename or 'the config'
    with blame(f'the model of {name} cannot be built', cfg):
        return MODELS.build(model)


def fitted(model: dict, checkpoint: dict, path: str | Path) -> dict:
    """Returns the config of the model that a checkpoint holds."""
    if checkpoint_plan(checkpoint) is None:
        return without_pretrained(model)
    return pruned_model_config(model, str(path))


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
    loaded = load_checkpoint_file(checkpoint, trust=trust)
    return loaded_model(cfg, loaded, checkpoint).to(device).eval()


def loaded_model(cfg: Config, checkpoint: dict, name: str | Path) -> nn.Module:
    """Returns the model of a config with the weights of a checkpoint.

    Raises:
        ValueError: If keys or shapes differ.
    """
    model = build_model(cfg, checkpoint_plan(checkpoint))
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
    problem = difference(model.state_dict(), weights)
    if problem:
        raise ValueError(f'{name} does not fit the model: {problem}')
    with blame(f'{name} cannot be loaded'):
        model.load_state_dict(weights)


def weights_of(checkpoint: dict, name: str | Path) -> dict[str, torch.Tensor]:
    """Returns the weights of a loaded checkpoint, a bare state dict or not.

    Raises:
        ValueError: If it holds none.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    named = isinstance(weights, dict) and all(
        isinstance(k, str) and isinstance(v, torch.Tensor)
        for k, v in weights.items()
    )
    if not weights or not named:
        found = sorted(map(str, checkpoint))[:5]
        raise ValueError(
            f'{name} holds no weights: under `state_dict` names with tensors '
            f'are expected, the file has {", ".join(found)}'
        )
    return weights
