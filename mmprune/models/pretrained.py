"""Weights of one model move into another of the same family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..checkpoints.comparing import weights_of
from ..checkpoints.reading import load_checkpoint_file


@dataclass(frozen=True)
class Moved:
    """What :func:`move_weights` did.

    Args:
        same: Names of the tensors that moved as they are.
        resized: Names of the embeddings that moved after resizing.
        left: Name -> why a tensor of the source stayed behind.
        new: Names of the model's own tensors that keep their fresh values.
        std: Standard deviation of the first attention's qkv weight, or of
            all moved matrices where there is none.
    """

    same: tuple[str, ...]
    resized: tuple[str, ...]
    left: dict[str, str]
    new: tuple[str, ...]
    std: float

    @property
    def count(self) -> int:
        """Number of tensors that moved."""
        return len(self.same) + len(self.resized)

    def __str__(self) -> str:
        left = ', '.join(f'{k} ({why})' for k, why in self.left.items())
        return (
            f'{len(self.same)} tensors moved as they are, '
            f'{len(self.resized)} resized ({", ".join(self.resized) or "-"});'
            f' left behind: {left or "-"}; new: {", ".join(self.new) or "-"};'
            f' std {self.std:.4f}'
        )


def load_pretrained(
    model: nn.Module,
    source: str,
    timm_name: str = '',
    resize: bool = False,
    min_std: float = 0.03,
) -> Moved:
    """Moves pretrained weights into a timm model and logs what moved.

    Args:
        model: The model, of another input size or number of classes.
        source: Path of a checkpoint, or ``'timm'`` for timm's weights of
            ``timm_name``, fetched by timm unless they are in its cache.
        timm_name: See there.
        resize: Whether patch and position embeddings are resampled.
        min_std: Standard deviation that the moved weights exceed. Fresh ones
            have 0.02, those of ImageNet ViTs about 0.06.

    Raises:
        ValueError: If nothing moved, or what moved is not trained.
    """
    if source == 'timm':
        weights, name = _from_timm(timm_name), f"timm's {timm_name}"
    else:
        weights, name = _from_file(source), source
    moved = move_weights(model, weights, resize=resize)
    if not moved.count:
        raise ValueError(
            f'{name} gave no tensor to the model: none of its '
            f'{len(weights)} names and shapes fits; is it of another model?'
        )
    if moved.std < min_std:
        raise ValueError(
            f'{name} looks untrained: the moved weights have a standard '
            f'deviation of {moved.std:.4f}, below min_std={min_std}; give '
            'trained weights'
        )
    print_log(f'pretrained weights of {name}: {moved}', 'current')
    return moved


@torch.no_grad()
def move_weights(
    model: nn.Module, weights: Mapping[str, Tensor], resize: bool = False
) -> Moved:
    """Copies tensors of equal name and shape into the model, in place.

    Args:
        model: The model.
        weights: Name -> tensor of another model.
        resize: Whether ``patch_embed.proj.weight`` and ``pos_embed`` are
            resampled to the model's size.
    """
    own = model.state_dict()
    same, resized, left = [], [], {}
    for name, tensor in weights.items():
        if name not in own:
            left[name] = 'unknown to the model'
            continue
        if own[name].shape == tensor.shape:
            own[name].copy_(tensor)
            same.append(name)
            continue
        fitted = _resized(model, name, tensor, own[name]) if resize else None
        if fitted is None:
            left[name] = f'{_shape(tensor)}, not {_shape(own[name])}'
        else:
            own[name].copy_(fitted)
            resized.append(name)
    new = tuple(k for k in own if k not in {*same, *resized})
    return Moved(tuple(same), tuple(resized), left, new, _std(own, same))


def _resized(
    model: nn.Module, name: str, tensor: Tensor, own: Tensor
) -> Tensor | None:
    """The embedding at the model's size; None if it is no embedding."""
    from timm.layers import resample_abs_pos_embed, resample_patch_embed

    if name == 'patch_embed.proj.weight':
        if tensor.shape[:2] != own.shape[:2]:
            return None
        return resample_patch_embed(tensor.float(), list(own.shape[2:]))
    if name == 'pos_embed' and tensor.shape[2] == own.shape[2]:
        prefix = getattr(model, 'num_prefix_tokens', 1)
        return resample_abs_pos_embed(
            tensor.float(),
            new_size=list(model.patch_embed.grid_size),
            num_prefix_tokens=prefix,
        )
    return None


def _std(own: Mapping[str, Tensor], same: list[str]) -> float:
    first = 'blocks.0.attn.qkv.weight'
    names = [first] if first in same else [n for n in same if own[n].ndim > 1]
    if not names:
        return 0.0
    return torch.cat([own[n].float().flatten() for n in names]).std().item()


def _from_file(path: str) -> dict[str, Tensor]:
    found: Any = load_checkpoint_file(path)
    for key in ('state_dict', 'model'):
        if isinstance(found.get(key), Mapping):
            found = found[key]
            break
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)}
    weights = weights_of(tensors or found, path)
    return {k.removeprefix('module.'): v for k, v in weights.items()}


def _from_timm(name: str) -> dict[str, Tensor]:
    import timm

    print_log(
        f'asking timm for its weights of {name}; it downloads them unless '
        'they are in its cache',
        'current',
    )
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        # Whatever the hub's client raises without a network.
        raise ValueError(
            f'timm has no weights of {name} at hand and could not fetch them '
            f'({type(error).__name__}); give a file as pretrained'
        ) from error


def _shape(tensor: Tensor) -> str:
    return 'x'.join(map(str, tensor.shape))
