"""Decoders: generic layers, and the one that refines reference points."""

from typing import NamedTuple

from torch import Tensor, nn

from .deformable_attention import CustomMSDeformableAttention
from .post_norm import PostNormLayer


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``x`` clipped to [0, 1], in float32, finite everywhere."""
    x = x.float()
    odds = x.clamp(eps, 1) / (1 - x).clamp(eps, 1)
    return odds.log()


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


class AttentionLayer(PostNormLayer):
    """Attention, norm, FFN, norm.

    Args:
        embed_dims: Width of queries, keys and values.
        feedforward_channels: Hidden width of the FFN.
        num_heads: Number of heads.
        dropout: Probability in all parts.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        feedforward_channels: int = 512,
        num_heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            embed_dims,
            feedforward_channels,
            dropout,
            ResidualAttention(embed_dims, num_heads, dropout),
        )

    def forward(self, query: Tensor, *others: Tensor | None) -> Tensor:
        """Returns the next query; arguments of :class:`ResidualAttention`."""
        return self.run(query, others)


class AttentionDecoder(nn.Module):
    """Layers of attention between two sets of tokens, Xavier at the start.

    Args:
        num_layers: Number of layers.
        **layer: Keywords of :class:`AttentionLayer`.
    """

    def __init__(self, num_layers: int = 1, **layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            AttentionLayer(**layer) for _ in range(num_layers)
        )

    def forward(self, query: Tensor, *others: Tensor | None) -> Tensor:
        """Returns ``[B, queries, C]``; see :class:`ResidualAttention`."""
        for layer in self.layers:
            query = layer(query, *others)
        return query


class BEVDecoderLayer(PostNormLayer):
    """Self-attention, norm, attention on the BEV, norm, FFN, norm.

    Args:
        embed_dims: Width of queries and BEV.
        feedforward_channels: Hidden width of the FFN.
        num_heads: Heads of both attentions.
        num_points: Sampling points on the BEV.
        dropout: Probability in all parts.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        feedforward_channels: int = 512,
        num_heads: int = 8,
        num_points: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            embed_dims,
            feedforward_channels,
            dropout,
            ResidualAttention(embed_dims, num_heads, dropout),
            CustomMSDeformableAttention(
                embed_dims, num_heads, num_points, dropout
            ),
        )

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
        return self.run(
            query,
            (query, query_pos, query_pos),
            (query_pos, bev.unsqueeze(1), reference, [bev_shape]),
        )


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
        **layer: Keywords of :class:`BEVDecoderLayer`.
    """

    def __init__(
        self, num_layers: int, columns: tuple[int, ...], **layer
    ) -> None:
        super().__init__()
        self.columns = list(columns)
        self.layers = nn.ModuleList(
            BEVDecoderLayer(**layer) for _ in range(num_layers)
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
