"""Heads and neurons of timm's vision transformers."""

from collections.abc import Iterator

from torch import nn

from ..groups import PruneGroup, Slice, rows
from ..registry import FUNCTIONS


@FUNCTIONS.register_module()
def vit_groups(model: nn.Module) -> Iterator[PruneGroup]:
    """Yields heads and neurons of every timm ``Attention`` and ``Mlp``."""
    for path, module in model.named_modules():
        kind = type(module).__name__
        # BEiT's attention of the same name has biases and tables of its own.
        fused = hasattr(module, 'qkv') and hasattr(module, 'head_dim')
        if kind == 'Attention' and fused:
            yield _heads(path, module)
        elif kind == 'Mlp' and hasattr(module, 'fc1'):
            yield _neurons(path, module)


def _heads(path: str, module: nn.Module) -> PruneGroup:
    width = module.head_dim
    dense = ''
    if not isinstance(getattr(module, 'norm', None), nn.Identity | None):
        dense = 'a norm over all heads: its statistics would change'
    elif getattr(module, 'gate', None) is not None:
        dense = 'gated attention has no rule yet'
    return PruneGroup(
        name=path,
        granularity='head',
        size=module.num_heads,
        producers=rows(f'{path}.qkv', module.qkv, width, copies=3),
        consumers=(Slice(f'{path}.proj.weight', 1, block=width),),
        attrs={f'{path}.num_heads': 1, f'{path}.attn_dim': width},
        dense=dense,
    )


def _neurons(path: str, module: nn.Module) -> PruneGroup:
    normed = not isinstance(getattr(module, 'norm', None), nn.Identity | None)
    return PruneGroup(
        name=path,
        granularity='neuron',
        size=module.fc1.out_features,
        producers=rows(f'{path}.fc1', module.fc1),
        consumers=(Slice(f'{path}.fc2.weight', 1),),
        dense='a norm over the neurons: its statistics would change'
        if normed
        else '',
    )
