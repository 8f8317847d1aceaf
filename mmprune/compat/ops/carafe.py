"""Upsampling by kernels that the model computes (arXiv:1905.02188)."""

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .gradients import write_gradients
from .precision import exact_dtype


def naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, **settings: int
) -> None:
    """Writes the weighted neighbourhoods into ``output``.

    Args:
        features: ``[b, c, h, w]``.
        masks: ``[b, groups * k * k, h * s, w * s]``, a kernel per pixel.
        output: ``[b, c, h * s, w * s]``; written.
        settings: ``kernel_size`` (``k``, odd), ``group_size`` (``groups``)
            and ``scale_factor`` (``s``).
    """
    output.copy_(_reassemble(settings, features, masks))


def naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    **settings: int,
) -> None:
    """Writes both gradients."""
    write_gradients(
        partial(_reassemble, settings),
        (features, masks),
        (grad_input, grad_masks),
        grad_output,
    )


def forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    **settings: int,
) -> None:
    """The same; the buffer that ``backward`` gets holds the features."""
    rfeatures.copy_(features)
    naive_forward(features, masks, output, **settings)


def backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    **settings: Any,
) -> None:
    """Writes both gradients; the other buffers are not used."""
    naive_backward(
        grad_output, rfeatures, masks, grad_input, grad_masks, **settings
    )


def _reassemble(settings: dict, features: Tensor, masks: Tensor) -> Tensor:
    names = ('kernel_size', 'group_size', 'scale_factor')
    size, groups, scale = (settings[name] for name in names)
    exact = exact_dtype(features)
    batch, channels, height, width = features.shape
    patches = F.unfold(features.to(exact), size, padding=size // 2)
    # [b, c, k * k, h, 1, w, 1] and one kernel for all channels of a group.
    patches = patches.view(batch, channels, size**2, height, 1, width, 1)
    kernels = masks.to(exact).view(
        batch, groups, 1, size**2, height, scale, width, scale
    )
    if groups == 1:
        kernels = kernels[:, 0]
    else:
        patches = patches.unflatten(1, (groups, -1))
    found = (patches * kernels).sum(-5)
    return found.reshape(batch, channels, height * scale, width * scale)
