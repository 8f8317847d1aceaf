"""The three deformable attentions of VAD.

Every width is read from a tensor, and only ``num_heads``, ``num_levels`` and
``num_points`` are stored, so that a module that lost heads or points runs.
Rows of ``sampling_offsets`` are ordered (head, frame, level, point, xy), rows
of ``attention_weights`` (head, frame, level, point).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deformable_sampling import Shapes, sample_levels


class DeformableAttention(nn.Module):
    """Where a query looks, how much that counts, and what there is to see.

    Args:
        embed_dims: Width of what is read; that of a query is as many times
            larger as there are frames.
        num_heads: Number of heads.
        num_levels: Number of feature levels.
        num_points: Sampling points per head, frame and level.
        frames: Number of frames that a query reads.
    """

    # How maps are read; an export sets another form on its copy.
    sample = staticmethod(sample_levels)

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        frames: int = 1,
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(
                f'embed_dims={embed_dims} does not divide into '
                f'{num_heads} heads; choose a multiple of num_heads.'
            )
        self.num_heads, self.num_levels = num_heads, num_levels
        self.num_points = num_points
        width, samples = (
            frames * size
            for size in (embed_dims, num_heads * num_levels * num_points)
        )
        self.sampling_offsets = nn.Linear(width, 2 * samples)
        self.attention_weights = nn.Linear(width, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)

    def init_weights(self) -> None:
        """Ring of offsets, even weights, Xavier projections."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        with torch.no_grad():
            split = (self.num_heads, -1, self.num_points, 2)
            bias = self.sampling_offsets.bias.view(split)
            bias += _ring(self.num_heads, self.num_points).unsqueeze(1)
        for name, linear in self.named_children():
            if name.endswith('_proj'):
                start_projection(linear)

    def look(self, query: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
        """Returns offsets and weights of the points of each query.

        Args:
            query: ``[..., frames * C]``.
            shapes: ``(h, w)`` of each level.

        Returns:
            Offsets ``[..., heads, frames, levels, points, 2]`` as fractions
            of the level, and weights of the same shape without the last
            dimension, 1 in sum over levels and points.
        """
        split = (self.num_heads, -1, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).float()
        logits = self.attention_weights(query).float().unflatten(-1, split)
        weights = logits.flatten(-2).softmax(-1).view_as(logits)
        pixels = offsets.new_tensor([(w, h) for h, w in shapes]).unsqueeze(1)
        return offsets.unflatten(-1, (*split, 2)) / pixels, weights

    def split_heads(self, value: Tensor) -> Tensor:
        """Projects ``[maps, pixels, C]`` to ``[maps, pixels, heads, width]``.

        The width of a head follows from the projection's rows.
        """
        return self.value_proj(value).unflatten(-1, (self.num_heads, -1))


class _BEVAttention(DeformableAttention):
    """Reads one or several BEVs around a point and adds the query.

    Args:
        embed_dims: Width of queries and BEV.
        num_heads: Number of heads.
        num_points: Sampling points per head and BEV.
        dropout: Probability on the output, before the residual.
    """

    frames: int

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_points: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(embed_dims, num_heads, 1, num_points, self.frames)
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

        Where to look is asked of the earlier BEVs and of the query. A sample
        of a batch reads its own BEVs; upstream mixes samples when there is
        more than one.

        Args:
            query: ``[B, queries, C]``.
            query_pos: ``[B, queries, C]``.
            value: ``[B, frames, HW, C]``, the earlier BEV first.
            reference: ``[B, queries, 2]``, (x, y) as fractions of the BEV.
            shapes: ``(h, w)`` of the BEV, in a list.
        """
        split = (*value.shape[:2], query.shape[1])
        earlier = value[:, :-1].unbind(1)
        asking = torch.cat((*earlier, query + query_pos), -1)
        offsets, weights = self.look(asking, shapes)
        places = reference.float()[:, :, None, None, None, None] + offsets
        # Each BEV of a sample is a map of its own.
        maps = torch.arange(split[0] * split[1], device=query.device)
        read = self.sample(
            self.split_heads(value.flatten(0, 1)),
            shapes,
            places.movedim(3, 1).flatten(0, 2),
            weights.movedim(3, 1).flatten(0, 2),
            maps.repeat_interleave(split[2]),
        )
        read = read.unflatten(0, split).mean(1)
        return query + self.dropout(self.output_proj(read))


class CustomMSDeformableAttention(_BEVAttention):
    """A decoder's cross-attention on the BEV features of this frame."""

    frames = 1


class TemporalSelfAttention(_BEVAttention):
    """Self-attention over the BEV of the previous and of this frame."""

    frames = 2


class MSDeformableAttention3D(DeformableAttention):
    """Sampling around pillars of projected points; has no output layer.

    The number of points is a multiple of the number of heights of a pillar;
    point p belongs to height p modulo that number.
    """

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
        offsets, weights = (x.squeeze(2) for x in self.look(query, shapes))
        # [R, heads, levels, points / heights, heights, 2]
        places = offsets.unflatten(3, (-1, reference.shape[1]))
        places = places + reference[:, None, None, None]
        return self.sample(
            self.split_heads(value),
            shapes,
            places.flatten(3, 4),
            weights,
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
        embed_dims: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.deformable_attention = MSDeformableAttention3D(
            embed_dims, num_heads, num_levels, num_points
        )
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Xavier output projection; the child has its own start."""
        start_projection(self.output_proj)

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
        return query + self.dropout(out)


def start_projection(linear: nn.Linear) -> None:
    """Gives a projection its start, Xavier without bias, in place."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)


def _ring(num_heads: int, num_points: int) -> Tensor:
    """``[heads, points, 2]``: head k looks in direction k of a turn.

    On the border of a square: point p is p + 1 pixels away along the axis
    that is farther.
    """
    turn = torch.arange(num_heads) * (2 * math.pi / num_heads)
    direction = torch.view_as_real(torch.polar(torch.ones(num_heads), turn))
    direction = F.normalize(direction, p=math.inf, dim=-1)
    return direction.unsqueeze(1) * torch.arange(1, num_points + 1).view(-1, 1)
