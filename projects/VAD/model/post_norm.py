"""The shape that every layer of VAD's encoder and decoders has."""

from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn


class PostNormLayer(nn.Module):
    """Attentions and then an FFN, each with a norm behind it.

    Args:
        embed_dims: Width of the queries.
        feedforward_channels: Hidden width of the FFN.
        dropout: Probability in the FFN.
        *attentions: In order; each adds the query to what it reads.
    """

    def __init__(
        self,
        embed_dims: int,
        feedforward_channels: int,
        dropout: float,
        *attentions: nn.Module,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        self.ffns = nn.ModuleList(
            [FFN(embed_dims, feedforward_channels, ffn_drop=dropout)]
        )
        count = len(attentions) + len(self.ffns)
        self.norms = nn.ModuleList(
            nn.LayerNorm(embed_dims) for _ in range(count)
        )

    def run(self, query: Tensor, *arguments: tuple) -> Tensor:
        """Returns the next query.

        Args:
            query: ``[B, queries, C]``.
            *arguments: Of each attention, beyond the query.
        """
        steps = zip(self.attentions, self.norms, arguments, strict=False)
        for attention, norm, others in steps:
            query = norm(attention(query, *others))
        return self.norms[-1](self.ffns[0](query))
