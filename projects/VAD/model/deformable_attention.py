"""The three deformable attentions of VAD.

Every width is read from a tensor, and only ``num_heads``, ``num_levels`` and
``num_points`` are stored, so that a module that lost heads or points runs.
Rows of ``sampling_offsets`` are ordered (head, [queue], level, point, xy),
rows of ``attention_weights`` (head, [queue], level, point).
"""

import math

import torch
from torch import Tensor, nn

from .deformable_sampling import Shapes, sample_levels


def _ring(num_heads: int, repeats: int, num_points: int) -> Tensor:
    """Start offsets: head k looks in direction k, point p at radius p + 1."""
    angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
    ring = torch.stack((angle.cos(), angle.sin()), -1)
    ring = ring / ring.abs().amax(-1, keepdim=True)
    radius = torch.arange(1, num_points + 1).view(1, 1, -1, 1)
    ring = ring.view(num_heads, 1, 1, 2) * radius
    return ring.repeat(1, repeats, 1, 1).flatten()


class _DeformableAttention(nn.Module):
    """The linear layers that the three attentions share."""

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        *,
        query_dims: int | None = None,
        num_queues: int = 1,
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(
                f'embed_dims={embed_dims} does not divide into '
                f'{num_heads} heads; choose a multiple of num_heads.'
            )
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        samples = num_heads * num_queues * num_levels * num_points
        query_dims = query_dims or embed_dims
        self.sampling_offsets = nn.Linear(query_dims, 2 * samples)
        self.attention_weights = nn.Linear(query_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)

    def init_weights(self) -> None:
        """Ring of offsets, even weights, Xavier projections."""
        ring = _ring(
            self.num_heads,
            self.sampling_offsets.out_features
            // (2 * self.num_heads * self.num_points),
            self.num_points,
        )
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.sampling_offsets.bias.data.copy_(ring)
        for name, layer in self.named_children():
            if name in ('value_proj', 'output_proj'):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def _split_heads(self, value: Tensor) -> Tensor:
        """Projects ``[maps, pixels, C]`` to ``[maps, pixels, heads, width]``.

        The width of a head follows from the projection's rows.
        """
        return self.value_proj(value).unflatten(-1, (self.num_heads, -1))


def _pixels(shapes: Shapes, like: Tensor) -> Tensor:
    """``[levels, 1, 2]``: (width, height) of each level."""
    size = [(w, h) for h, w in shapes]
    return torch.tensor(
        size, dtype=torch.float32, device=like.device
    ).unsqueeze(1)


class CustomMSDeformableAttention(_DeformableAttention):
    """A decoder's cross-attention on the BEV features.

    Args:
        embed_dims: Width of queries and BEV.
        num_heads: Number of heads.
        num_levels: Number of feature levels of the value.
        num_points: Sampling points per head and level.
        dropout: Probability on the output, before the residual.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 1,
        num_points: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(embed_dims, num_heads, num_levels, num_points)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        value: Tensor,
        reference: Tensor,
        shapes: Shapes,
    ) -> Tensor:
        """Returns the query plus what it reads, ``[B, queries, C]``.

        Args:
            query: ``[B, queries, C]``.
            query_pos: ``[B, queries, C]``.
            value: ``[B, sum(h * w), C]``.
            reference: ``[B, queries, 2]``, (x, y) as fractions.
            shapes: ``(h, w)`` of each level.
        """
        size, num_query = query.shape[:2]
        split = (self.num_heads, self.num_levels, self.num_points)
        embed = query + query_pos
        offsets = self.sampling_offsets(embed).float().flatten(0, 1)
        weights = self.attention_weights(embed).float().flatten(0, 1)
        weights = weights.unflatten(-1, (self.num_heads, -1)).softmax(-1)
        locations = reference.float().reshape(-1, 1, 1, 1, 2) + (
            offsets.unflatten(-1, (*split, 2)) / _pixels(shapes, offsets)
        )
        batch = torch.arange(size, device=query.device)
        out = sample_levels(
            self._split_heads(value),
            shapes,
            locations,
            weights.unflatten(-1, split[1:]),
            batch.repeat_interleave(num_query),
        )
        out = self.output_proj(out.unflatten(0, (size, num_query)))
        return self.dropout(out) + query


class TemporalSelfAttention(_DeformableAttention):
    """Self-attention over the BEV of the previous and of this frame.

    Args:
        embed_dims: Width of the BEV.
        num_heads: Number of heads.
        num_levels: Number of levels of the BEV (one).
        num_points: Sampling points per head and frame.
        num_bev_queue: Number of BEVs read, the previous and this one.
        dropout: Probability on the output, before the residual.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 1,
        num_points: int = 4,
        num_bev_queue: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            embed_dims,
            num_heads,
            num_levels,
            num_points,
            query_dims=num_bev_queue * embed_dims,
            num_queues=num_bev_queue,
        )
        self.num_bev_queue = num_bev_queue
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        value: Tensor,
        reference: Tensor,
        shapes: Shapes,
    ) -> Tensor:
        """Returns the query plus the mean of what it reads in each BEV.

        A sample of a batch reads its own BEVs; upstream mixes samples when
        there is more than one.

        Args:
            query: ``[B, HW, C]``.
            query_pos: ``[B, HW, C]``.
            value: ``[B, queue, HW, C]``, the previous BEV first.
            reference: ``[B, HW, 2]``, used for all BEVs of the queue.
            shapes: ``(h, w)`` of the one level.
        """
        size, queue, num_query = value.shape[:3]
        split = (self.num_heads, queue, self.num_levels, self.num_points)
        embed = torch.cat((value[:, 0], query + query_pos), dim=-1)
        # [B, HW, heads, queue, levels, points, ...]
        offsets = self.sampling_offsets(embed).float()
        offsets = offsets.unflatten(-1, (*split, 2))
        weights = self.attention_weights(embed).float()
        weights = weights.unflatten(-1, (*split[:2], -1)).softmax(-1)
        weights = weights.unflatten(-1, split[2:])
        locations = reference.view(size, num_query, 1, 1, 1, 1, 2) + (
            offsets / _pixels(shapes, offsets)
        )
        batch = torch.arange(size * queue, device=query.device)
        out = sample_levels(
            self._split_heads(value.flatten(0, 1)),
            shapes,
            # the queue joins the batch
            locations.movedim(3, 1).flatten(0, 2),
            weights.movedim(3, 1).flatten(0, 2),
            batch.repeat_interleave(num_query),
        )
        out = out.view(size, queue, num_query, -1).mean(1)
        return self.dropout(self.output_proj(out)) + query


class MSDeformableAttention3D(_DeformableAttention):
    """Sampling around pillars of projected points; has no output layer.

    Args:
        embed_dims: Width of queries and image features.
        num_heads: Number of heads.
        num_levels: Number of image feature levels.
        num_points: Sampling points per head and level, a multiple of the
            number of heights of a pillar; point p belongs to height p modulo
            that number.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 8,
    ) -> None:
        super().__init__(embed_dims, num_heads, num_levels, num_points)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        reference: Tensor,
        batch: Tensor,
        shapes: Shapes,
    ) -> Tensor:
        """Returns what each query reads in its image, ``[R, heads * width]``.

        Args:
            query: ``[R, C]``.
            value: ``[images, sum(h * w), C]``.
            reference: ``[R, heights, 2]``, (x, y) as fractions of the image.
            batch: ``[R]``, the image of each query, ascending.
            shapes: ``(h, w)`` of each level.
        """
        split = (self.num_heads, self.num_levels, self.num_points)
        weights = self.attention_weights(query).float()
        weights = weights.unflatten(-1, (self.num_heads, -1)).softmax(-1)
        offsets = self.sampling_offsets(query).float()
        offsets = offsets.unflatten(-1, (*split, 2)) / _pixels(shapes, query)
        # [R, heads, levels, points / heights, heights, 2]
        offsets = offsets.unflatten(3, (-1, reference.shape[1]))
        locations = reference[:, None, None, None] + offsets
        return sample_levels(
            self._split_heads(value),
            shapes,
            locations.flatten(3, 4),
            weights.unflatten(-1, split[1:]),
            batch,
        )


class SpatialCrossAttention(nn.Module):
    """BEV cells read the camera images in which their pillars are visible.

    Args:
        embed_dims: Width of the BEV and of the image features.
        num_heads: Number of heads.
        num_levels: Number of image feature levels.
        num_points: Sampling points per head and level.
        dropout: Probability on the output, before the residual.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.deformable_attention = MSDeformableAttention3D(
            embed_dims, num_heads, num_levels, num_points
        )
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Xavier output projection; the child initialises itself."""
        self.deformable_attention.init_weights()
        nn.init.xavier_uniform_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        reference: Tensor,
        image: Tensor,
        cell: Tensor,
        shapes: Shapes,
    ) -> Tensor:
        """Returns the query plus the mean over the cameras that see it.

        The pairs (image, cell) that see each other are listed, so that no
        camera is padded to the number of cells of another one.

        Args:
            query: ``[B, HW, C]``.
            value: ``[B * cameras, sum(h * w), C]``.
            reference: ``[R, heights, 2]``, projected points of each pair.
            image: ``[R]``, row of ``value``, ascending.
            cell: ``[R]``, index into the B * HW cells.
            shapes: ``(h, w)`` of each level.
        """
        cells = query.flatten(0, 1)
        read = self.deformable_attention(
            cells[cell], value, reference, image, shapes
        )
        total = read.new_zeros(len(cells), read.shape[-1])
        total = total.index_add(0, cell, read)
        seen = torch.bincount(cell, minlength=len(cells)).clamp(min=1)
        mean = (total / seen.unsqueeze(1)).to(read.dtype)
        out = self.output_proj(mean.unflatten(0, query.shape[:2]))
        return self.dropout(out) + query
