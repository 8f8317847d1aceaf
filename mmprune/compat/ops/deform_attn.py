"""Multi-scale deformable attention (https://arxiv.org/abs/2010.04159)."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from .gradients import write_gradients
from .precision import exact_dtype


def forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Returns the attended values, ``[b, q, heads * d]``.

    Args:
        value: ``[b, keys, heads, d]``, the levels one after the other.
        spatial_shapes: ``[levels, 2]``, height and width of each level.
        level_start_index: ``[levels]``, first key of each level.
        sampling_locations: ``[b, q, heads, levels, points, 2]``, x and y in
            [0, 1].
        attention_weights: ``[b, q, heads, levels, points]``.
        im2col_step: Not used: the whole batch goes at once.
    """
    levels = (spatial_shapes, level_start_index)
    attended = _attend(levels, value, sampling_locations, attention_weights)
    return attended.to(value.dtype)


def backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Writes the three gradients into the ``grad_*`` buffers."""
    write_gradients(
        partial(_attend, (spatial_shapes, level_start_index)),
        (value, sampling_locations, attention_weights),
        (grad_value, grad_sampling_loc, grad_attn_weight),
        grad_output,
    )


def _attend(levels: tuple[Tensor, Tensor], *inputs: Tensor) -> Tensor:
    exact = exact_dtype(inputs[0])
    value, locations, weights = (t.to(exact) for t in inputs)
    shapes, starts = (t.tolist() for t in levels)
    batch, _, heads, width = value.shape
    queries = locations.shape[1]
    # [b, q, heads, levels, points, 2] -> levels x [b * heads, q, points, 2]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1).unbind(2)
    # [b, q, heads, levels, points] -> levels x [b * heads, 1, q, points]
    shares = weights.transpose(1, 2).flatten(0, 1)[:, None].unbind(3)
    output = value.new_zeros(batch * heads, width, queries)
    for (height, length), start, grid, share in zip(
        shapes, starts, grids, shares, strict=True
    ):
        level = value[:, start : start + height * length]
        # [b, keys, heads, d] -> [b * heads, d, height, length]
        level = level.permute(0, 2, 3, 1).reshape(-1, width, height, length)
        sampled = F.grid_sample(level, grid, align_corners=False)
        output = output + (sampled * share).sum(-1)
    # [b * heads, d, q] -> [b, q, heads * d]
    return output.view(batch, heads * width, queries).transpose(1, 2)
