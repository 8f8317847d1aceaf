"""Decoders: generic layers, and the one that refines reference points."""

from typing import NamedTuple

import torch
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn

from .deformable_attention import CustomMSDeformableAttention


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``x`` clipped to [0, 1], in float32, finite everywhere."""
    x = x.float().clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


class ResidualAttention(nn.Module):
    """``nn.MultiheadAttention`` with positions and a residual, batch first.

    Args:
        embed_dims: Width of queries, keys and values.
        num_heads: Number of heads.
        dropout: Probability on the attention weights and on the output.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(embed_dims, num_heads, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        query_pos: Tensor,
        key_pos: Tensor,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Returns the query plus what it reads, ``[B, queries, C]``.

        Args:
            query: ``[B, queries, C]``.
            key: ``[B, keys, C]``, also the values.
            query_pos: Like ``query``.
            key_pos: Like ``key``, added to the keys only.
            key_padding_mask: ``[B, keys]``, true where nothing is read.
        """
        out, _ = self.attn(
            (query + query_pos).transpose(0, 1),
            (key + key_pos).transpose(0, 1),
            key.transpose(0, 1),
            key_padding_mask=key_padding_mask,
            need_weights=False,
        )
        return query + self.dropout(out.transpose(0, 1))


class AttentionLayer(nn.Module):
    """Attention, norm, FFN, norm."""

    def __init__(
        self,
        embed_dims: int,
        feedforward_channels: int,
        num_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            [ResidualAttention(embed_dims, num_heads, dropout)]
        )
        self.ffns = nn.ModuleList(
            [FFN(embed_dims, feedforward_channels, ffn_drop=dropout)]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dims) for _ in range(2))

    def forward(self, query: Tensor, *args, **kwargs) -> Tensor:
        """Returns the next query; arguments of :class:`ResidualAttention`."""
        query = self.norms[0](self.attentions[0](query, *args, **kwargs))
        return self.norms[1](self.ffns[0](query))


class AttentionDecoder(nn.Module):
    """Layers of attention between two sets of tokens, Xavier at the start.

    Args:
        num_layers: Number of layers.
        embed_dims: Width of both sets.
        feedforward_channels: Hidden width of the FFN.
        num_heads: Number of heads.
        dropout: Probability in all parts.
    """

    def __init__(
        self,
        num_layers: int = 1,
        embed_dims: int = 256,
        feedforward_channels: int = 512,
        num_heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            AttentionLayer(
                embed_dims, feedforward_channels, num_heads, dropout
            )
            for _ in range(num_layers)
        )

    def forward(self, query: Tensor, *args, **kwargs) -> Tensor:
        """Returns ``[B, queries, C]``; see :class:`ResidualAttention`."""
        for layer in self.layers:
            query = layer(query, *args, **kwargs)
        return query


class BEVDecoderLayer(nn.Module):
    """Self-attention, norm, attention on the BEV, norm, FFN, norm."""

    def __init__(
        self,
        embed_dims: int,
        feedforward_channels: int,
        num_heads: int,
        num_points: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            (
                ResidualAttention(embed_dims, num_heads, dropout),
                CustomMSDeformableAttention(
                    embed_dims,
                    num_heads,
                    num_points=num_points,
                    dropout=dropout,
                ),
            )
        )
        self.ffns = nn.ModuleList(
            [FFN(embed_dims, feedforward_channels, ffn_drop=dropout)]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dims) for _ in range(3))

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        bev: Tensor,
        reference: Tensor,
        bev_shape: tuple[int, int],
    ) -> Tensor:
        """Returns the next query ``[B, queries, C]``.

        Args:
            query: ``[B, queries, C]``.
            query_pos: ``[B, queries, C]``.
            bev: ``[B, HW, C]``.
            reference: ``[B, queries, 2]``, fractions of the region.
            bev_shape: (H, W).
        """
        query = self.attentions[0](query, query, query_pos, query_pos)
        query = self.norms[0](query)
        query = self.attentions[1](
            query, query_pos, bev, reference, [bev_shape]
        )
        query = self.norms[1](query)
        return self.norms[2](self.ffns[0](query))


class LayerOutput(NamedTuple):
    """What one layer of a :class:`RefiningDecoder` gives.

    Attributes:
        query: ``[B, queries, C]``.
        code: ``[B, queries, n]``, output of the layer's regression branch.
        logit: ``[B, queries, k]``, logit of the refined reference point.
    """

    query: Tensor
    code: Tensor
    logit: Tensor


class RefiningDecoder(nn.Module):
    """Decoder on the BEV whose reference points move from layer to layer.

    Args:
        num_layers: Number of layers.
        columns: Entries of the regression code that move the reference
            point; the first two are x and y.
        embed_dims: Width of queries and BEV.
        feedforward_channels: Hidden width of the FFN.
        num_heads: Heads of both attentions.
        num_points: Sampling points on the BEV.
        dropout: Probability in all parts.
    """

    def __init__(
        self,
        num_layers: int,
        columns: tuple[int, ...],
        embed_dims: int = 256,
        feedforward_channels: int = 512,
        num_heads: int = 8,
        num_points: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.columns = list(columns)
        self.layers = nn.ModuleList(
            BEVDecoderLayer(
                embed_dims,
                feedforward_channels,
                num_heads,
                num_points,
                dropout,
            )
            for _ in range(num_layers)
        )

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        bev: Tensor,
        reference: Tensor,
        bev_shape: tuple[int, int],
        reg_branches: nn.ModuleList,
    ) -> list[LayerOutput]:
        """Returns the output of every layer.

        No gradient flows through a reference point into the layer before.

        Args:
            query: ``[B, queries, C]``.
            query_pos: ``[B, queries, C]``.
            bev: ``[B, HW, C]``.
            reference: ``[B, queries, k]``, fractions of the region.
            bev_shape: (H, W).
            reg_branches: One regression branch per layer.
        """
        outputs = []
        for layer, branch in zip(self.layers, reg_branches, strict=True):
            query = layer(query, query_pos, bev, reference[..., :2], bev_shape)
            code = branch(query).float()
            logit = code[..., self.columns] + inverse_sigmoid(reference)
            reference = logit.detach().sigmoid()
            outputs.append(LayerOutput(query, code, logit))
        return outputs
