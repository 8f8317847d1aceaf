"""One feature per polyline from the features of its points."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .head_layers import hidden_layer


class _PointMLP(nn.Module):
    """Linear, norm, ReLU; then the maximum over the points is appended."""

    def __init__(self, in_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(*hidden_layer(in_channels, hidden_channels))

    def forward(self, points: Tensor) -> Tensor:
        points = self.mlp(points)
        longest = points.amax(-2, keepdim=True).expand_as(points)
        return torch.cat((points, longest), dim=-1)


class LaneEncoder(nn.Module):
    """Vector network over the points of each polyline (VectorNet, 2020).

    Args:
        in_channels: Width of a point's feature.
        hidden_channels: Width inside; a lane's feature is twice as wide.
        num_layers: Number of point networks.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, num_layers: int = 3
    ) -> None:
        super().__init__()
        widths = [in_channels] + [2 * hidden_channels] * (num_layers - 1)
        # The released weights name them so.
        self.layer_seq = nn.Sequential(
            OrderedDict(
                (f'lmlp_{i}', _PointMLP(width, hidden_channels))
                for i, width in enumerate(widths)
            )
        )

    def forward(self, points: Tensor) -> Tensor:
        """``[B, lanes, points, C]`` to ``[B, lanes, 2 * hidden]``."""
        return self.layer_seq(points).amax(-2)
