"""Bilinear sampling and its gradients on a CPU, each in one pass.

Operations of PyTorch write a table of corners for every sample, and
``embedding_bag`` sorts its rows to add up the gradients of the pixels. Here
a training step keeps nothing but the arguments, and what is sampled has the
bits of those operations. Every thread takes some heads, whose pixels no other
one adds to: sums have one order, whatever the number of threads.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from projects.VAD.compiled import compiled

Shapes = Sequence[tuple[int, int]]


def sampled(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    batch: Tensor,
) -> Tensor:
    """Returns what ``sample_levels`` does; all are float32 on the CPU."""
    out = value.new_zeros(*weights.shape[:2], value.shape[3])
    given = _arrays(value, _pixels(locations, shapes), weights)
    _by_heads(_sample, (*given, *_levels(shapes, batch), out.numpy()))
    return out.flatten(1)


def sampling_gradients(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    batch: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of :func:`sampled`.

    Args:
        value: As of ``sample_levels``.
        shapes: The same.
        locations: The same.
        weights: The same.
        batch: The same.
        grad: ``[queries, heads * width]``, of what was sampled.

    Returns:
        The gradients of ``value``, ``locations`` and ``weights``.
    """
    of_value = torch.zeros_like(value, memory_format=torch.contiguous_format)
    of_locations, of_weights = (
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (locations, weights)
    )
    grad = grad.unflatten(1, (value.shape[2], -1))
    given = _arrays(value, _pixels(locations, shapes), weights, grad)
    written = _arrays(of_value, of_locations, of_weights)
    _by_heads(_gradients, (*given, *_levels(shapes, batch), *written))
    return of_value, of_locations, of_weights


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [x.detach().contiguous().numpy() for x in tensors]


def _pixels(locations: Tensor, shapes: Shapes) -> Tensor:
    """Where locations lie in their levels, in pixels.

    By PyTorch, since a compiler makes one operation of product and
    difference, which rounds otherwise: by 1e-5 of a pixel in a hundred.
    """
    size = locations.new_tensor([(w, h) for h, w in shapes]).unsqueeze(1)
    return locations * size - 0.5


def _levels(shapes: Shapes, batch: Tensor) -> tuple[np.ndarray, ...]:
    """The map of each query; width, height and first pixel of each level."""
    size = np.array([(w, h) for h, w in shapes], np.float32)
    area = size.prod(1).astype(np.int64)
    return batch.contiguous().numpy(), size, np.cumsum(area) - area


def _by_heads(work: Callable[..., None], arrays: tuple) -> None:
    heads = arrays[0].shape[2]
    threads = max(1, min(torch.get_num_threads(), heads))
    if threads == 1:
        work(*arrays, 0, heads)
        return
    borders = [heads * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        parts = zip(borders, borders[1:], strict=False)
        list(pool.map(lambda part: work(*arrays, *part), parts))


@compiled(nogil=True)
def _corner(x, y, columns, rows, number):
    """A corner's pixel in its level and its weights; -1 for one outside."""
    left, top = np.floor(x), np.floor(y)
    right, down = x - left, y - top
    column, row = np.int64(left) + (number & 1), np.int64(top) + (number >> 1)
    wx = right if number & 1 else np.float32(1) - right
    wy = down if number >> 1 else np.float32(1) - down
    if column < 0 or column >= columns or row < 0 or row >= rows:
        return np.int64(-1), wx, wy
    return row * np.int64(columns) + column, wx, wy


@compiled(nogil=True, fastmath={'contract'})
def _sample(value, pixels, weights, batch, size, start, out, first, last):
    """Writes what the heads from first to last read.

    Rounded as ``embedding_bag`` does: corners in this order, each product
    added unrounded.
    """
    queries, _, levels, points = weights.shape
    width = value.shape[3]
    for query in range(queries):
        colors = value[batch[query]]
        for head in range(first, last):
            read = out[query, head]
            for level in range(levels):
                columns, rows = size[level]
                for point in range(points):
                    x, y = pixels[query, head, level, point]
                    weight = weights[query, head, level, point]
                    if x != x or y != y:
                        read[:] = np.nan
                    if not (-1 <= x < columns and -1 <= y < rows):
                        continue
                    for number in range(4):
                        pixel, wx, wy = _corner(x, y, columns, rows, number)
                        if pixel < 0:
                            continue
                        share = wx * (wy * weight)
                        seen = colors[start[level] + pixel, head]
                        for c in range(width):
                            read[c] += share * seen[c]


# The order of a sum over the width is free, so that it fits vector registers.
@compiled(nogil=True, fastmath={'reassoc', 'contract', 'nsz'})
def _gradients(
    value,
    pixels,
    weights,
    grad,
    batch,
    size,
    start,
    of_value,
    of_locations,
    of_weights,
    first,
    last,
):
    """Writes the gradients of the heads from first to last."""
    zero = np.float32(0)
    queries, _, levels, points = weights.shape
    width = value.shape[3]
    for query in range(queries):
        colors = value[batch[query]]
        of_colors = of_value[batch[query]]
        for head in range(first, last):
            asked = grad[query, head]
            for level in range(levels):
                columns, rows = size[level]
                for point in range(points):
                    x, y = pixels[query, head, level, point]
                    weight = weights[query, head, level, point]
                    by_x, by_y, by_weight = zero, zero, zero
                    # What is far outside, or no number, reads nothing.
                    inside = -1 <= x < columns and -1 <= y < rows
                    for number in range(4 if inside else 0):
                        pixel, wx, wy = _corner(x, y, columns, rows, number)
                        if pixel < 0:
                            continue
                        share = wx * wy * weight
                        seen = colors[start[level] + pixel, head]
                        of_seen = of_colors[start[level] + pixel, head]
                        product = zero
                        for c in range(width):
                            product += seen[c] * asked[c]
                            of_seen[c] += share * asked[c]
                        by_weight += wx * wy * product
                        by_x += wy * product if number & 1 else -wy * product
                        by_y += wx * product if number >> 1 else -wx * product
                    of_weights[query, head, level, point] = by_weight
                    given = of_locations[query, head, level, point]
                    given[0] = by_x * weight * columns
                    given[1] = by_y * weight * rows
