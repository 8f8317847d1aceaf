"""Bilinear sampling of multi-level feature maps, the hot spot on a CPU.

Three ways to the same numbers: mmcv's CUDA op where it is, loops compiled for
a CPU (:mod:`.compiled_sampling`, several times as fast as operations and with
the same bits), and operations of PyTorch where somebody records them.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .compiled_sampling import sampled, sampling_gradients

Shapes = Sequence[tuple[int, int]]


def sample_levels(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    batch: Tensor,
) -> Tensor:
    """Returns weighted sums of bilinear samples of feature maps.

    Zero outside the map, pixel centres at half-integers
    (``align_corners=False``). A query reads one map of the batch; queries of
    the same map are consecutive.

    Args:
        value: ``[maps, sum(h * w), heads, head_width]``.
        shapes: ``(h, w)`` of each level.
        locations: ``[queries, heads, levels, points, 2]``, (x, y) as fractions
            of the map.
        weights: ``[queries, heads, levels, points]``.
        batch: ``[queries]``, the map of each query, ascending.

    Returns:
        ``[queries, heads * head_width]``.
    """
    dtype = value.dtype
    # Half precision cannot address a pixel in a map of some hundred.
    value, locations, weights = (
        x.float() for x in (value, locations, weights)
    )
    if value.is_cuda and compiled_op():
        out = _sample_compiled(value, shapes, locations, weights, batch)
    elif _runs_compiled(value, locations, weights):
        out = _SampleOnCPU.apply(value, shapes, locations, weights, batch)
    else:
        out = _sample(value, shapes, locations, weights, batch)
    return out.to(dtype)


def _runs_compiled(*inputs: Tensor) -> bool:
    """Whether the loops serve: on a CPU, and nobody records operations."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    if is_in_torch_dispatch_mode():  # as when groups are discovered
        return False
    return all(x.device.type == 'cpu' for x in inputs)


class _SampleOnCPU(torch.autograd.Function):
    """``sample_levels``, compiled for a CPU."""

    @staticmethod
    def forward(ctx, value, shapes, locations, weights, batch):
        ctx.save_for_backward(value, locations, weights, batch)
        ctx.shapes = shapes
        return sampled(value, shapes, locations, weights, batch)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        value, locations, weights, batch = ctx.saved_tensors
        of_value, of_locations, of_weights = sampling_gradients(
            value, ctx.shapes, locations, weights, batch, grad
        )
        return of_value, None, of_locations, of_weights, None


def _sample(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    batch: Tensor,
) -> Tensor:
    """``sample_levels`` as one weighted look-up in a table of pixels.

    ``embedding_bag`` fuses the gathering of the four corners of all points
    with their weighted sum; ``grid_sample`` writes every sample to memory.
    """
    heads, head_width = value.shape[2:]
    rows, row_weights = corners(shapes, heads, locations, weights, batch)
    out = F.embedding_bag(
        rows.flatten(0, 1),
        value.reshape(-1, head_width),
        per_sample_weights=row_weights.flatten(0, 1),
        mode='sum',
    )
    return out.view(len(locations), heads * head_width)


def corners(
    shapes: Shapes,
    num_heads: int,
    locations: Tensor,
    weights: Tensor,
    batch: Tensor,
) -> tuple[Tensor, Tensor]:
    """Rows of the pixel table and weights, ``[queries, heads, 4 * points]``.

    Row of pixel (x, y) of a level in a map for a head:
    ``(map * total + start + y * w + x) * heads + head``.
    """
    device = locations.device
    size = torch.tensor([(w, h) for h, w in shapes], dtype=torch.int32)
    area = size.prod(1)
    start = (area.cumsum(0) - area).int().to(device).unsqueeze(1)
    size = size.to(device)
    width, height = size[:, :1], size[:, 1:]  # [levels, 1]
    pixel = locations * size.float().unsqueeze(1) - 0.5
    corner = pixel.detach().floor()
    right, down = (pixel - corner).unbind(-1)
    # Far locations overflow an int32, and whatever that gives is outside.
    left, top = corner.int().unbind(-1)
    first = (batch.int() * int(area.sum())).view(-1, 1, 1, 1) + start
    head = torch.arange(num_heads, dtype=torch.int32, device=device)
    rows, row_weights = [], []
    for y, wy in ((top, (1 - down) * weights), (top + 1, down * weights)):
        for x, wx in ((left, 1 - right), (left + 1, right)):
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            row = (first + y * width + x) * num_heads + head.view(-1, 1, 1)
            rows.append(row * inside)
            row_weights.append(wx * wy * inside)
    return (
        torch.stack(rows, -1).flatten(2),
        torch.stack(row_weights, -1).flatten(2),
    )


@cache
def compiled_op() -> bool:
    """Whether mmcv has its compiled extension (not one served in Python)."""
    spec = find_spec('mmcv._ext')
    return spec is not None and spec.has_location


def _sample_compiled(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    batch: Tensor,
) -> Tensor:
    """``sample_levels`` by mmcv's CUDA op; it wants equally many queries."""
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
    )

    maps = len(value)
    counts = torch.bincount(batch, minlength=maps)
    longest = int(counts.max()) if len(batch) else 0
    place = torch.arange(len(batch), device=batch.device)
    place = place - (counts.cumsum(0) - counts)[batch]
    padded = [
        x.new_zeros(maps, longest, *x.shape[1:]) for x in (locations, weights)
    ]
    padded = [
        p.index_put((batch, place), x)
        for p, x in zip(padded, (locations, weights), strict=True)
    ]
    size = torch.tensor(shapes, device=value.device)
    area = size.prod(1)
    out = MultiScaleDeformableAttnFunction.apply(
        value.contiguous(), size, area.cumsum(0) - area, *padded, 64
    )
    return out[batch, place]
