"""Masks with one bit per weight, as checkpoints hold them."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def pack_masks(
    masks: Mapping[str, Tensor], fills: Mapping[str, float] | None = None
) -> dict[str, dict]:
    """Returns masks with one bit per element, safe in a checkpoint.

    Args:
        masks: Name -> boolean mask.
        fills: Tensor name -> what takes the place of zero.

    Returns:
        Name -> ``shape`` (list), ``bits`` (bytes as a tensor) and ``fill``.
    """
    return {
        name: dict(
            shape=list(mask.shape),
            bits=torch.from_numpy(np.packbits(mask.cpu().numpy())),
            fill=(fills or {}).get(name, 0.0),
        )
        for name, mask in masks.items()
    }


def unpack_masks(
    packed: Mapping[str, Mapping],
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Returns the masks and fills that :func:`pack_masks` packed.

    Raises:
        ValueError: If the data is not what it wrote.
    """
    masks, fills = {}, {}
    for name, entry in packed.items():
        try:
            shape = tuple(entry['shape'])
            bits = np.unpackbits(entry['bits'].cpu().numpy())
            flat = torch.from_numpy(bits[: int(np.prod(shape))])
            masks[name] = flat.bool().view(shape)
            fills[name] = float(entry['fill'])
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(
                f'the checkpoint has no readable mask of {name!r}: {error}'
            ) from error
    return masks, {name: fill for name, fill in fills.items() if fill}
