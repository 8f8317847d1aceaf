"""Small parts of the head: positions, branches, what is passed on."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn


class LearnedPositionalEncoding(nn.Module):
    """One learned vector per row and per column of the BEV.

    Args:
        channels: Width of each.
        height: Rows of the BEV.
        width: Columns of the BEV.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(height, channels)
        self.col_embed = nn.Embedding(width, channels)

    def forward(self) -> Tensor:
        """Returns ``[HW, C]``, the column's vector before the row's."""
        rows, columns = self.row_embed.weight, self.col_embed.weight
        across = columns.repeat(len(rows), 1)
        along = rows.repeat_interleave(len(columns), 0)
        return torch.cat((across, along), dim=-1)


class Agents(NamedTuple):
    """Agent queries after the last layer and where they are.

    Attributes:
        query: ``[B, agents, C]``.
        position: ``[B, agents, 2]``, fractions of the region, no gradient.
    """

    query: Tensor
    position: Tensor


class Lanes(NamedTuple):
    """Map vectors after the last layer.

    Attributes:
        feature: ``[B, lanes, C]``.
        position: ``[B, lanes, 2]``, fractions of the region, no gradient.
        score: ``[B, lanes]``, probability of the best class, no gradient.
    """

    feature: Tensor
    position: Tensor
    score: Tensor

    def taken(self, index: Tensor) -> 'Lanes':
        """Returns the lanes of an index ``[B, n]``."""
        feature, position = (
            x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
            for x in self[:2]
        )
        return Lanes(feature, position, self.score.gather(1, index))


def hidden_layer(
    in_channels: int, out_channels: int, norm: bool = True
) -> list[nn.Module]:
    """Returns a linear layer, a LayerNorm on request, and a ReLU."""
    norms = [nn.LayerNorm(out_channels)] if norm else []
    return [nn.Linear(in_channels, out_channels), *norms, nn.ReLU()]


def make_branch(
    in_channels: int, out_channels: int, norm: bool
) -> nn.Sequential:
    """Returns a network of three linear layers, of one width but the last.

    Args:
        in_channels: Width of the input and inside.
        out_channels: Width of the output.
        norm: Whether a LayerNorm follows the first two.
    """
    return nn.Sequential(
        *hidden_layer(in_channels, in_channels, norm),
        *hidden_layer(in_channels, in_channels, norm),
        nn.Linear(in_channels, out_channels),
    )


def make_branches(
    num: int, in_channels: int, out_channels: int, norm: bool
) -> nn.ModuleList:
    """Returns ``num`` branches, one per layer, that start with equal weights.

    See ``make_branch``.
    """
    branch = make_branch(in_channels, out_channels, norm)
    return nn.ModuleList(copy.deepcopy(branch) for _ in range(num))
