"""Attentions with fewer heads than their width suggests."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SlimMultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` that takes its inner width from its weights.

    PyTorch's module derives the width of a head from ``embed_dim`` and
    ``num_heads``, and refuses a packed projection of another size, so it
    cannot lose heads. This one has the same parameters under the same names
    and computes the same; only the number of heads is free. Surgery turns a
    module into it, nobody needs to build one.
    """

    @classmethod
    def take_over(cls, module: nn.MultiheadAttention) -> None:
        """Turns a sliced ``nn.MultiheadAttention`` into this, in place.

        Raises:
            ValueError: If it has learned key and value biases, whose heads
                have no slices.
        """
        if module.bias_k is not None or module.bias_v is not None:
            raise ValueError(
                'nn.MultiheadAttention with add_bias_kv=True cannot lose '
                'heads; protect it'
            )
        module.__class__ = cls
        # PyTorch's fused encoder layer asks this before it reads the packed
        # weights itself; it must call `forward` instead.
        module._qkv_same_embed_dim = False
        proj = module.out_proj
        proj.out_features, proj.in_features = proj.weight.shape

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns what :class:`nn.MultiheadAttention` returns, of the same.

        An ``attn_mask`` ``[B * num_heads, L, S]`` may have the heads of the
        dense model. With ``is_causal`` it is used as well.
        """
        unbatched = query.dim() == 2
        if unbatched:
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        elif self.batch_first:
            query, key, value = (
                x.transpose(0, 1) for x in (query, key, value)
            )
        q, k, v = (self._split(x) for x in self._project(query, key, value))
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        bias = self._bias(attn_mask, key_padding_mask, q, k)
        drop = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            weights = (logits if bias is None else logits + bias).softmax(-1)
            weights = F.dropout(weights, drop)
            out = weights @ v
            if average_attn_weights:
                weights = weights.mean(1)  # [B, L, S]
        else:
            out = F.scaled_dot_product_attention(q, k, v, bias, drop)
        out = out.permute(2, 0, 1, 3).flatten(2)  # [L, B, heads * head_dim]
        out = self.out_proj(out)
        if unbatched:
            out = out.squeeze(1)
            weights = None if weights is None else weights.squeeze(0)
        elif self.batch_first:
            out = out.transpose(0, 1)
        return out, weights

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (
                self.q_proj_weight,
                self.k_proj_weight,
                self.v_proj_weight,
            )
        biases = (None,) * 3
        if self.in_proj_bias is not None:
            biases = self.in_proj_bias.chunk(3)
        inputs = (query, key, value)
        return tuple(map(F.linear, inputs, weights, biases))

    def _split(self, x: Tensor) -> Tensor:
        """``[L, B, heads * head_dim]`` -> ``[B, heads, L, head_dim]``."""
        return x.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)

    def _bias(
        self,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        q: Tensor,
        k: Tensor,
    ) -> Tensor | None:
        """Both masks as one additive bias, ``[B or 1, heads or 1, L, S]``."""
        bias = None
        if attn_mask is not None:
            bias = _additive(attn_mask, q)
            if bias.dim() == 3:
                bias = self._kept_heads(bias.unflatten(0, (q.shape[0], -1)))
            else:
                bias = bias[None, None]
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, q)[:, None, None]
            bias = padding if bias is None else bias + padding
        if bias is not None and self.add_zero_attn:
            bias = F.pad(bias, (0, 1))
        return bias

    def _kept_heads(self, bias: Tensor) -> Tensor:
        if bias.shape[1] == self.num_heads:
            return bias
        # A caller that built its masks for the dense model repeats one mask
        # for all heads, as mmdet's Mask2Former does.
        if not torch.equal(bias, bias[:, :1].expand_as(bias)):
            raise ValueError(
                f'attn_mask holds different masks for {bias.shape[1]} heads, '
                f'the pruned attention has {self.num_heads}; give it one '
                'mask per kept head'
            )
        return bias[:, :1]


class SlimWindowAttention(nn.Module):
    """mmdet's ``WindowMSA`` that takes its inner width from its weights.

    That module divides the width of its input by the number of heads, so it
    cannot lose heads. Surgery turns it into this one, which has the same
    parameters under the same names and computes the same (Swin,
    arXiv:2103.14030).
    """

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Returns whether a module is one that this can replace."""
        return type(module).__name__ == 'WindowMSA' and hasattr(
            module, 'relative_position_bias_table'
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns ``[windows, tokens, width]`` of the same.

        Args:
            x: Tokens of all windows.
            mask: ``[n, tokens, tokens]``, added to the logits of every n
                windows in turn.
        """
        windows, tokens, _ = x.shape
        qkv = self.qkv(x).view(windows, tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        places = self.relative_position_index.flatten()
        bias = self.relative_position_bias_table[places]
        bias = bias.view(tokens, tokens, -1).permute(2, 0, 1)
        logits = (q * self.scale) @ k.transpose(-2, -1) + bias
        if mask is not None:
            logits = logits.unflatten(0, (-1, len(mask))) + mask[:, None]
            logits = logits.flatten(0, 1)
        weights = self.attn_drop(self.softmax(logits))
        out = (weights @ v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(
            mask, float('-inf')
        )
    return mask.to(like.dtype)
