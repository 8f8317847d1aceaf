"""A checkpoint, pruned or dense, becomes a model ready to use."""

import copy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from ..plan import checkpoint_plan
from ..registry import MODELS
from .reading import load_checkpoint_file


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
    model = _untrained(copy.deepcopy(cfg.model))
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    if plan is not None:
        model = as_pruned(model, plan)
    try:
        return MODELS.build(model)
    except TypeError as error:
        raise ValueError(
            f'the model of {cfg.filename or "the config"} cannot be built: '
            f'{error}'
        ) from error


def as_pruned(model: dict, plan: dict | str | Path) -> dict:
    """Returns the config of a model after surgery.

    Args:
        model: Config of the dense model, or of a pruned one whose plan is
            to be another.
        plan: What :func:`build_pruned_model` takes.
    """
    if model['type'] == 'mmprune.PrunedModel':
        return {**model, 'plan': plan}
    model = _untrained(model)
    return dict(type='mmprune.PrunedModel', model=model, plan=plan)


def fitted(model: dict, checkpoint: dict, path: str | Path) -> dict:
    """Returns the config of the model that a checkpoint holds.

    Args:
        model: Config of the dense model.
        checkpoint: What the file holds, dense or pruned.
        path: The file, from which a pruned model reads its plan.
    """
    if checkpoint_plan(checkpoint) is None:
        return _untrained(model)
    return as_pruned(model, str(path))


def _untrained(model: dict) -> dict:
    # The weights come from a checkpoint; where it is used, those that its
    # training began with need not be there.
    return {**model, 'pretrained': None} if model.get('pretrained') else model


def load_model(
    cfg: Config,
    checkpoint: str | Path,
    device: str = 'cpu',
    trust: bool = False,
) -> nn.Module:
    """Returns the model with the weights of a checkpoint, in eval mode.

    A checkpoint that carries a plan is loaded into the pruned model, whether
    or not the config says so.

    Args:
        cfg: Config of the dense model, or the one written beside a pruned
            checkpoint.
        checkpoint: Path of the file.
        device: Where the model goes.
        trust: Whether to unpickle what the safe loader refuses.

    Raises:
        ValueError: If the file cannot be read or its keys or shapes differ
            from the model's.
    """
    loaded = load_checkpoint_file(checkpoint, trust=trust)
    model = build_model(cfg, checkpoint_plan(loaded))
    load_weights(model, loaded, checkpoint)
    return model.to(device).eval()


def load_weights(model: nn.Module, checkpoint: dict, name: str | Path) -> None:
    """Copies the weights of a loaded checkpoint into the model, strictly.

    Args:
        model: The model, pruned already if the checkpoint is.
        checkpoint: What :func:`load_checkpoint_file` returned.
        name: How errors call the checkpoint.

    Raises:
        ValueError: If keys or shapes differ.
    """
    weights = _state_dict(checkpoint, name)
    weights = _without_prefix(weights, model.state_dict())
    problem = difference(model.state_dict(), weights)
    if problem:
        raise ValueError(f'{name} does not fit the model: {problem}')
    model.load_state_dict(weights)


def _state_dict(checkpoint: dict, name: str | Path) -> dict[str, torch.Tensor]:
    weights = checkpoint.get('state_dict', checkpoint)
    named = isinstance(weights, dict) and all(
        isinstance(k, str) and isinstance(v, torch.Tensor)
        for k, v in weights.items()
    )
    if not named:
        found = sorted(map(str, checkpoint))[:5]
        raise ValueError(
            f'{name} holds no weights: under `state_dict` names with tensors '
            f'are expected, the file has {", ".join(found)}'
        )
    return weights


def _without_prefix(
    weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Checkpoints of ``DataParallel`` models carry ``module.``."""
    if weights and all(k.startswith('module.') for k in weights):
        stripped = {k[len('module.') :]: v for k, v in weights.items()}
        if stripped.keys() & wanted.keys():
            return stripped
    return weights


def difference(
    wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]
) -> str:
    """Returns in words how two state dicts differ, empty if they fit."""
    missing = [k for k in wanted if k not in found]
    extra = [k for k in found if k not in wanted]
    shapes = [
        f'{k} {tuple(found[k].shape)} for {tuple(v.shape)}'
        for k, v in wanted.items()
        if k in found and found[k].shape != v.shape
    ]
    problems = []
    if missing:
        problems.append(
            f'{len(missing)} keys are missing ({", ".join(missing[:5])})'
        )
    if extra:
        problems.append(f'{len(extra)} are unknown ({", ".join(extra[:5])})')
    if shapes:
        problems.append(
            f'{len(shapes)} shapes differ ({", ".join(shapes[:5])})'
        )
    if not problems:
        return ''
    return '; '.join(problems) + '. ' + _guess(wanted, missing, extra, shapes)


def _guess(
    wanted: dict, missing: list[str], extra: list[str], shapes: list[str]
) -> str:
    if len(missing) == len(wanted):
        return 'No key fits: it is the checkpoint of another model.'
    if missing and not extra and not shapes:
        return (
            'A part of the model is missing: is it a backbone file, or from '
            'another config of the family?'
        )
    if extra and not missing and not shapes:
        return 'The checkpoint has more than the model: is it a larger one?'
    return 'Was it made with another config of the family?'


def name_imports(cfg: Config) -> None:
    """Makes a config import mmprune when it is read, in place."""
    imports = dict(cfg.get('custom_imports') or dict(imports=[]))
    names = imports['imports']
    names = [names] if isinstance(names, str) else names
    imports['imports'] = sorted({'mmprune', *names})
    cfg.custom_imports = imports
