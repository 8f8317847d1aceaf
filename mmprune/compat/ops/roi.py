"""Pooling of regions of interest."""

import math
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor

from .gradients import write_gradients
from .precision import exact_dtype


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    pool_mode: int,
    **settings: Any,
) -> None:
    """Writes pooled features into ``output``, ``[r, c, ph, pw]``.

    Args:
        input: ``[b, c, h, w]``.
        rois: ``[r, 5]``: image index, x1 y1 x2 y2.
        output: ``[r, c, ph, pw]``; written.
        argmax_y: As ``output`` for maximum pooling, else empty; written.
        argmax_x: The same for the other axis.
        pool_mode: 0 maximum, 1 average.
        settings: ``aligned_height aligned_width`` (``ph``, ``pw``);
            ``spatial_scale``, size of the feature map over that of the
            image; ``sampling_ratio``, samples per bin and axis, 0 for one
            per input pixel; ``aligned``, whether pixel centres lie at half
            coordinates.
    """
    exact = input.to(exact_dtype(input))
    if pool_mode == 1:
        output.copy_(_average(rois, settings, exact))
        return
    size = (settings['aligned_height'], settings['aligned_width'])
    for n, roi in enumerate(rois.tolist()):
        ys = _sample_points(roi[2], roi[4], size[0], settings)
        xs = _sample_points(roi[1], roi[3], size[1], settings)
        best = _max_samples(exact[int(roi[0])], ys, xs, size)
        output[n], argmax_y[n], argmax_x[n] = best


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    pool_mode: int,
    **settings: Any,
) -> None:
    """Writes the gradient of the features into ``grad_input``."""
    if len(rois) == 0:
        return
    if pool_mode == 1:
        run = partial(_average, rois, settings)
    else:
        run = partial(_at_maxima, rois, argmax_y, argmax_x)
    # Both are linear in the input once the sample points are fixed, so the
    # gradient at 0 is the gradient.
    exact = torch.zeros_like(grad_input, dtype=exact_dtype(grad_input))
    write_gradients(run, (exact,), (grad_input,), grad_output)


def _average(rois: Tensor, settings: dict, input: Tensor) -> Tensor:
    return torchvision.ops.roi_align(
        input,
        rois.to(input.dtype),
        (settings['aligned_height'], settings['aligned_width']),
        settings['spatial_scale'],
        settings['sampling_ratio'],
        settings['aligned'],
    )


def _at_maxima(
    rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, input: Tensor
) -> Tensor:
    images = rois[:, 0].long().tolist()
    ys, xs = argmax_y.to(input.dtype), argmax_x.to(input.dtype)
    return torch.stack(
        [
            _bilinear(input[i], y.flatten(1), x.flatten(1)).view_as(y)
            for i, y, x in zip(images, ys, xs, strict=True)
        ]
    )


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Writes the largest feature of each bin into ``output``.

    mmcv's bins differ from torchvision's: corners are not rounded first.

    Args:
        input: ``[b, c, h, w]``.
        rois: ``[r, 5]``: image index, x1 y1 x2 y2.
        output: ``[r, c, ph, pw]``; written.
        argmax: As ``output``, int: place in the feature map, -1 for an empty
            bin; written.
        pooled_height: ``ph``.
        pooled_width: ``pw``.
        spatial_scale: Size of the feature map over that of the image.
    """
    height, width = input.shape[2:]
    scaled = rois[:, 1:].clone()
    scaled[:, 2:] += 1
    scaled = scaled * spatial_scale
    rows = _pool_bins(scaled[:, 1], scaled[:, 3], pooled_height, height)
    columns = _pool_bins(scaled[:, 0], scaled[:, 2], pooled_width, width)
    argmax.fill_(-1)
    output.zero_()
    for n, image in enumerate(rois[:, 0].long().tolist()):
        _max_of_bins(input[image], rows[n], columns[n], output[n], argmax[n])


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Adds each output's gradient where its maximum came from."""
    channels, height, width = grad_input.shape[1:]
    place = argmax.long().flatten(2)
    image = rois[:, 0].long()[:, None, None]
    channel = torch.arange(channels, device=rois.device)[None, :, None]
    index = (image * channels + channel) * height * width + place
    found = place >= 0
    grad_input.view(-1).index_add_(
        0, index[found], grad_output.flatten(2)[found].to(grad_input.dtype)
    )


def _sample_points(
    start: float, end: float, bins: int, settings: dict
) -> list[float]:
    """Returns the coordinates sampled along one axis, bin after bin."""
    names = ('spatial_scale', 'sampling_ratio', 'aligned')
    scale, ratio, aligned = (settings[name] for name in names)
    start = start * scale - 0.5 * aligned
    length = end * scale - 0.5 * aligned - start
    if not aligned:
        length = max(length, 1.0)
    size = length / bins
    # A region without extent still needs one sample to have a maximum.
    per_bin = ratio if ratio > 0 else max(math.ceil(size), 1)
    return [
        start + i * size + (j + 0.5) * size / per_bin
        for i in range(bins)
        for j in range(per_bin)
    ]


def _max_samples(
    feature: Tensor, ys: list[float], xs: list[float], size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the largest sample of each bin and where it was, ``[c, h, w]``.

    Args:
        feature: ``[c, h, w]``.
        ys: Sampled rows, a multiple of ``size[0]``.
        xs: Sampled columns, a multiple of ``size[1]``.
        size: Bins along both axes.
    """
    channels = len(feature)
    y, x = torch.meshgrid(
        feature.new_tensor(ys), feature.new_tensor(xs), indexing='ij'
    )
    wide = (channels, y.numel())
    value = _bilinear(
        feature, y.reshape(1, -1).expand(wide), x.reshape(1, -1).expand(wide)
    )

    def bins(points: Tensor) -> Tensor:
        points = points.view(-1, size[0], len(ys) // size[0], *y.shape[1:])
        points = points.unflatten(-1, (size[1], len(xs) // size[1]))
        return points.transpose(2, 3).flatten(3)

    best, place = bins(value).max(-1)
    place = place[..., None]
    at_y = bins(y[None]).expand(channels, -1, -1, -1).gather(-1, place)
    at_x = bins(x[None]).expand(channels, -1, -1, -1).gather(-1, place)
    return best, at_y[..., 0], at_x[..., 0]


def _bilinear(feature: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Returns interpolated values, ``[c, p]``, of ``feature`` ``[c, h, w]``.

    RoIAlign's border: up to one pixel outside counts as the edge, beyond it
    is zero.
    """
    height, width = feature.shape[1:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor().long(), x.floor().long()
    bottom = (top + 1).clamp(max=height - 1)
    right = (left + 1).clamp(max=width - 1)
    down, across = y - top, x - left
    flat = feature.flatten(1)

    def at(row: Tensor, column: Tensor) -> Tensor:
        return flat.gather(1, row * width + column)

    upper = at(top, left) * (1 - across) + at(top, right) * across
    lower = at(bottom, left) * (1 - across) + at(bottom, right) * across
    return (upper * (1 - down) + lower * down) * inside


def _pool_bins(
    start: Tensor, end: Tensor, bins: int, limit: int
) -> list[list[tuple[int, int]]]:
    """Returns first and last-plus-one pixel of each bin of each region."""
    size = (end - start)[:, None] / bins
    edge = torch.arange(bins + 1, device=start.device)
    first = (edge[:-1] * size + start[:, None]).floor().clamp(0, limit)
    last = (edge[1:] * size + start[:, None]).ceil().clamp(0, limit)
    # No bins where the region has no extent.
    last = torch.where(size > 0, last, first)
    both = torch.stack([first, last], dim=-1).long().tolist()
    return [[tuple(bin_) for bin_ in region] for region in both]


def _max_of_bins(
    feature: Tensor,
    rows: list[tuple[int, int]],
    columns: list[tuple[int, int]],
    output: Tensor,
    argmax: Tensor,
) -> None:
    # Columns first, then rows: ties go to the first pixel in reading order.
    width = feature.shape[2]
    for j, (left, right) in enumerate(columns):
        if right <= left:
            continue
        value, column = feature[:, :, left:right].max(2)
        for i, (top, bottom) in enumerate(rows):
            if bottom <= top:
                continue
            best, row = value[:, top:bottom].max(1)
            output[:, i, j] = best
            at = column.gather(1, row[:, None] + top)[:, 0] + left
            argmax[:, i, j] = ((row + top) * width + at).to(argmax.dtype)
