"""State dicts: what a checkpoint has, and how two differ."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def checksum(weights: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of names, types, shapes and bytes of tensors."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f'{name}:{tensor.dtype}:{tuple(tensor.shape)};'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Returns in words how two state dicts differ, empty if they fit."""
    missing = [k for k in wanted if k not in found]
    extra = [k for k in found if k not in wanted]
    shapes = differing_shapes(wanted, found)
    problems = []
    if missing:
        problems.append(
            f'{len(missing)} keys are missing ({", ".join(missing[:5])})'
        )
    if extra:
        problems.append(f'{len(extra)} are unknown ({", ".join(extra[:5])})')
    if shapes:
        problems.append(shapes_differ(shapes))
    if not problems:
        return ''
    return '; '.join(problems) + '. ' + _guess(wanted, missing, extra, shapes)


def differing_shapes(
    wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> list[str]:
    """Returns the tensors that both have in different shapes, in words."""
    return [
        f'{k} {tuple(found[k].shape)} for {tuple(v.shape)}'
        for k, v in wanted.items()
        if k in found and tuple(found[k].shape) != tuple(v.shape)
    ]


def shapes_differ(shapes: list[str]) -> str:
    """Returns a part of a sentence about :func:`differing_shapes`."""
    return f'{len(shapes)} shapes differ ({", ".join(shapes[:5])})'


def weights_of(checkpoint: dict, name: str | Path) -> dict[str, Any]:
    """Returns the weights of a loaded checkpoint, a bare state dict or not.

    Raises:
        ValueError: If it holds none.
    """
    import torch

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


def without_prefix(
    weights: Mapping[str, Any], wanted: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Returns weights without the ``module.`` of ``DataParallel`` models."""
    if weights and all(k.startswith('module.') for k in weights):
        stripped = {k[len('module.') :]: v for k, v in weights.items()}
        if stripped.keys() & wanted.keys():
            return stripped
    return weights


def _guess(
    wanted: Mapping, missing: list[str], extra: list[str], shapes: list[str]
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
