"""Regions pooled at points that turn or move with the region."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .gradients import write_gradients
from .precision import exact_dtype


def deform_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    **settings: Any,
) -> None:
    """Writes pooled features into ``output``, ``[r, c, ph, pw]``.

    Deformable RoI pooling (arXiv:1703.06211): each bin moves by itself.

    Args:
        input: ``[b, c, h, w]``.
        rois: ``[r, 5]``: image index, x1 y1 x2 y2.
        offset: ``[r, 2, ph, pw]``, x and y in parts of the region, or empty.
        output: Written.
        settings: ``pooled_height pooled_width``; ``spatial_scale``, size of
            the map over that of the image; ``sampling_ratio``, samples per
            bin and axis, 0 for one per pixel of the map; ``gamma``, by which
            offsets are multiplied.
    """
    output.copy_(_deformed(rois, settings, input, _some(offset)))


def deform_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    **settings: Any,
) -> None:
    """Writes the gradients of the map and of the offsets."""
    if len(rois):
        write_gradients(
            partial(_deformed, rois, settings),
            (input, _some(offset)),
            (grad_input, _some(grad_offset)),
            grad_output,
        )


def rotated_forward(
    input: Tensor, rois: Tensor, output: Tensor, **settings: Any
) -> None:
    """Writes pooled features into ``output``, ``[r, c, ph, pw]``.

    Args:
        input: ``[b, c, h, w]``.
        rois: ``[r, 6]``: image index, centre x y, width, height, angle in
            radians.
        output: Written.
        settings: As of :func:`deform_forward` without ``gamma``, and
            ``aligned``, whether pixel centres lie at half coordinates, and
            ``clockwise``, the sense of the angle.
    """
    output.copy_(_rotated(rois, settings, input))


def rotated_backward(
    grad_output: Tensor, rois: Tensor, grad_input: Tensor, **settings: Any
) -> None:
    """Writes the gradient of the map."""
    if len(rois):
        # Linear in the map: the gradient at 0 is the gradient.
        exact = torch.zeros_like(grad_input, dtype=exact_dtype(grad_input))
        write_gradients(
            partial(_rotated, rois, settings),
            (exact,),
            (grad_input,),
            grad_output,
        )


def _some(tensor: Tensor) -> Tensor | None:
    return tensor if tensor.numel() else None


def _deformed(
    rois: Tensor, settings: dict, input: Tensor, offset: Tensor | None
) -> Tensor:
    exact = exact_dtype(input)
    rois = rois.to(exact)
    corners = rois[:, 1:] * settings['spatial_scale'] - 0.5
    size = corners[:, 2:] - corners[:, :2]
    bins = settings['pooled_height'], settings['pooled_width']
    pooled = []
    for i, image in enumerate(rois[:, 0].long().tolist()):
        x, y = _grid(size[i], bins, settings['sampling_ratio'])
        x, y = x + corners[i, 0], y + corners[i, 1]
        if offset is not None:
            moved = settings['gamma'] * size[i, :, None, None] * offset[i]
            x = x + moved[0, :, None, :, None]
            y = y + moved[1, :, None, :, None]
        pooled.append(_mean_at(input[image].to(exact), x, y))
    return _stacked(pooled, input, bins)


def _rotated(rois: Tensor, settings: dict, input: Tensor) -> Tensor:
    exact = exact_dtype(input)
    rois, aligned = rois.to(exact), settings['aligned']
    scale = settings['spatial_scale']
    centers = rois[:, 1:3] * scale - 0.5 * aligned
    size = rois[:, 3:5] * scale
    size = size if aligned else size.clamp(min=1.0)
    angles = -rois[:, 5] if settings['clockwise'] else rois[:, 5]
    bins = settings['pooled_height'], settings['pooled_width']
    pooled = []
    for i, image in enumerate(rois[:, 0].long().tolist()):
        x, y = _grid(size[i], bins, settings['sampling_ratio'])
        x, y = x - size[i, 0] / 2, y - size[i, 1] / 2
        cos, sin = angles[i].cos(), angles[i].sin()
        x, y = (
            y * sin + x * cos + centers[i, 0],
            y * cos - x * sin + centers[i, 1],
        )
        pooled.append(_mean_at(input[image].to(exact), x, y))
    return _stacked(pooled, input, bins)


def _stacked(pooled: list[Tensor], input: Tensor, bins: tuple) -> Tensor:
    if pooled:
        return torch.stack(pooled)
    return input.new_zeros((0, input.shape[1], *bins))


def _grid(
    size: Tensor, bins: tuple[int, int], ratio: int
) -> tuple[Tensor, Tensor]:
    """Returns x and y from the first corner, ``[ph, sy, pw, sx]``."""
    axes = []
    for length, count in zip(size.flip(0), bins, strict=True):
        step = length / count
        samples = ratio if ratio > 0 else max(int(step.ceil()), 0)
        inner = torch.arange(samples, device=size.device).to(size.dtype) + 0.5
        edge = torch.arange(count, device=size.device).to(size.dtype)
        axes.append(edge[:, None] * step + inner * step / max(samples, 1))
    y, x = axes
    return torch.broadcast_tensors(x[None, None], y[:, :, None, None])


def _mean_at(feature: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Returns the mean over the samples of each bin, ``[c, ph, pw]``.

    Up to one pixel outside counts as the edge, beyond it is zero.
    """
    channels, height, width = feature.shape
    if not x.numel():
        return feature.new_zeros(channels, x.shape[0], x.shape[2])
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    # In [-1, 1] from the centre of the first to that of the last pixel.
    grid = torch.stack([_unit(x, width), _unit(y, height)], -1)
    values = F.grid_sample(
        feature[None],
        grid.flatten(0, 2)[None],
        padding_mode='border',
        align_corners=True,
    )
    values = values.view(channels, *x.shape) * inside
    return values.mean((2, 4))


def _unit(position: Tensor, size: int) -> Tensor:
    position = position.clamp(0, size - 1)
    return position * (2 / max(size - 1, 1)) - 1
