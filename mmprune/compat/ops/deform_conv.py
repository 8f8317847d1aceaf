"""Deformable convolution, v1 and v2 (with a mask), through torchvision.

The argument names are those of mmcv's wrappers; ``columns`` and ``ones`` are
scratch buffers of the compiled kernels and not used. The number of groups is
read from the shapes.
"""

from functools import partial

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from .gradients import write_gradients
from .precision import exact_dtype

# Pixels; outside of any map, and a number in half precision too.
_FAR = 3e4


def forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **settings: int,
) -> None:
    """Writes the v1 convolution into ``output``, ``[b, out, oh, ow]``.

    Args:
        input: ``[b, in, h, w]``.
        weight: ``[out, in / groups, kh, kw]``.
        offset: ``[b, deform_groups * kh * kw * 2, oh, ow]``, y before x.
        output: Written.
        columns: Not used.
        ones: Not used.
        settings: ``dH dW padH padW dilationH dilationW`` and unused ones.
    """
    output.copy_(_run(settings, input, offset, weight))


def backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **settings: int,
) -> None:
    """Writes the v1 gradients of input and offset."""
    write_gradients(
        partial(_run, settings),
        (input, offset, weight),
        (grad_input, grad_offset, None),
        grad_output,
    )


def backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **settings: int,
) -> None:
    """Adds the v1 gradient of the weight, times ``scale``."""
    found = torch.zeros_like(grad_weight)
    # The convolution is linear in its weight: any weight gives the gradient.
    write_gradients(
        partial(_run, settings),
        (input, offset, torch.zeros_like(grad_weight)),
        (None, None, found),
        grad_output,
    )
    grad_weight.add_(found, alpha=scale)


def modulated_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **settings: int,
) -> None:
    """Writes the v2 convolution into ``output``, ``[b, out, oh, ow]``.

    Args:
        input: ``[b, in, h, w]``.
        weight: ``[out, in / groups, kh, kw]``.
        bias: ``[out]``, or empty.
        ones: Not used.
        offset: ``[b, deform_groups * kh * kw * 2, oh, ow]``, y before x.
        mask: ``[b, deform_groups * kh * kw, oh, ow]``.
        output: Written.
        columns: Not used.
        with_bias: Whether to add ``bias``.
        settings: ``stride_h ... dilation_w`` and unused ones.
    """
    bias = bias if with_bias else None
    output.copy_(_run(settings, input, offset, weight, bias, mask))


def modulated_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **settings: int,
) -> None:
    """Writes the v2 gradients into the ``grad_*`` buffers."""
    if not with_bias:
        bias = grad_bias = None
    write_gradients(
        partial(_run, settings),
        (input, offset, weight, bias, mask),
        (grad_input, grad_offset, grad_weight, grad_bias, grad_mask),
        grad_output,
    )


def _run(
    settings: dict,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    exact = exact_dtype(input)
    # Of what is no number mmcv's kernels read nothing; torchvision's, on the
    # CPU, read any memory.
    offset = torch.nan_to_num(offset, _FAR, _FAR, -_FAR)
    offset = _as_read(offset, settings, input, weight)
    if mask is not None:
        mask = _as_read(mask, settings, input, weight)
    return deform_conv2d(
        input.to(exact),
        offset.to(exact),
        weight.to(exact),
        None if bias is None else bias.to(exact),
        stride=_pair(settings, 'stride', 'd'),
        padding=_pair(settings, 'pad', 'pad'),
        dilation=_pair(settings, 'dilation', 'dilation'),
        mask=None if mask is None else mask.to(exact),
    )


def _as_read(
    values: Tensor, settings: dict, input: Tensor, weight: Tensor
) -> Tensor:
    """Returns offsets or masks as mmcv's kernels read them.

    These do not ask for the shape: of a larger map, as DyHead gives it, they
    read the first values of each picture as if it were as large as the
    output. Published weights were trained so.
    """
    sizes = [
        (length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for length, pad, dilation, kernel, stride in zip(
            input.shape[2:],
            _pair(settings, 'pad', 'pad'),
            _pair(settings, 'dilation', 'dilation'),
            weight.shape[2:],
            _pair(settings, 'stride', 'd'),
            strict=True,
        )
    ]
    if list(values.shape[2:]) == sizes:
        return values
    read = values.shape[1] * sizes[0] * sizes[1]
    return values.flatten(1)[:, :read].unflatten(1, (-1, *sizes))


def _pair(settings: dict, v2: str, v1: str) -> tuple[int, int]:
    """Returns (height, width); v1 and v2 spell the settings differently."""
    if f'{v2}_h' in settings:
        return settings[f'{v2}_h'], settings[f'{v2}_w']
    return settings[f'{v1}H'], settings[f'{v1}W']
