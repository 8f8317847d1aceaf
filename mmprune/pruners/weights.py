"""Zeroes single weights: unstructured sparsity."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..allocation import check_scope, check_sparsity, lowest, round_half_up
from ..masks import keep_zeros
from ..plan import PruningPlan
from ..registry import TASK_UTILS

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_PACKED = ('in_proj_weight', 'q_proj_weight', 'k_proj_weight', 'v_proj_weight')


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class WeightPruner:
    """Zeroes the smallest weights of convolutions and linear layers.

    Exactly ``round(sparsity * n)`` of the n prunable weights are zero
    afterwards. Han et al., "Learning both Weights and Connections for
    Efficient Neural Networks", NeurIPS 2015.

    Args:
        sparsity: Fraction to zero, in ``[0, 1)``.
        scope: ``global`` (all weights compete) or ``layer``.
        protect: Regular expressions; weights whose name matches stay dense.
    """

    sparsity: float
    scope: str = 'global'
    protect: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        check_scope(self.scope)

    def __call__(self, model: nn.Module) -> PruningPlan:
        """Zeroes the weights in place and returns the plan that says so.

        Raises:
            ValueError: If no weight is left to prune.
        """
        masks = self.masks(model)
        keep_zeros(model, masks)
        return PruningPlan(
            groups=(),
            keep={},
            sparse=dict.fromkeys(masks, 'unstructured'),
            provenance=dict(
                sparsity=self.sparsity,
                importance='magnitude of single weights',
                scope=self.scope,
                protect=list(self.protect),
            ),
        )

    def masks(
        self, model: nn.Module, before: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Returns which weights stay; the model is left as it is.

        Args:
            model: Any model.
            before: Earlier masks; what they dropped goes first and never
                comes back.

        Raises:
            ValueError: If no weight is left to prune.
        """
        weights = prunable_weights(model, self.protect)
        if not weights:
            raise ValueError(
                'nothing can be pruned: the model has no unprotected '
                'convolution or linear layer'
            )
        parts = [weights]
        if self.scope == 'layer':
            parts = [{n: w} for n, w in weights.items()]
        masks = {}
        for part in parts:
            masks |= _masks(part, self.sparsity, before or {})
        for name in masks.keys() & (before or {}).keys():
            masks[name] &= before[name].to(masks[name].device)
        return masks


def prunable_weights(
    model: nn.Module, protect: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Returns the kernels and matrices of the model, shared ones once."""
    found, seen = {}, set()
    for path, module in model.named_modules():
        leaves = ()
        if isinstance(module, _LAYERS):
            leaves = ('weight',)
        elif isinstance(module, nn.MultiheadAttention):
            leaves = _PACKED
        for leaf in leaves:
            name = f'{path}.{leaf}' if path else leaf
            weight = getattr(module, leaf)
            kept = any(re.search(pattern, name) for pattern in protect)
            if weight is not None and id(weight) not in seen and not kept:
                seen.add(id(weight))
                found[name] = weight.detach()
    return found


def _masks(
    weights: dict[str, Tensor], sparsity: float, before: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    sizes = {
        name: w.abs().masked_fill(~before[name].to(w.device), -1)
        if name in before
        else w.abs()
        for name, w in weights.items()
    }
    magnitudes = torch.cat([size.flatten() for size in sizes.values()])
    count = round_half_up(sparsity * len(magnitudes))
    keep = ~lowest(magnitudes, count)
    parts = keep.split([w.numel() for w in weights.values()])
    return {
        name: part.view(weight.shape)
        for (name, weight), part in zip(weights.items(), parts, strict=True)
    }
