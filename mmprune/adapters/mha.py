"""Heads of ``nn.MultiheadAttention``."""

from collections.abc import Iterator

from torch import nn

from ..groups import PruneGroup, Slice
from ..registry import FUNCTIONS


@FUNCTIONS.register_module()
def mha_groups(model: nn.Module) -> Iterator[PruneGroup]:
    """Yields the heads of every ``nn.MultiheadAttention`` of a model."""
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            yield _heads(path, module)


def _heads(path: str, module: nn.MultiheadAttention) -> PruneGroup:
    width = module.head_dim
    if module.in_proj_weight is not None:
        packed = {'in_proj_weight': 3}
    else:
        packed = dict.fromkeys(
            ('q_proj_weight', 'k_proj_weight', 'v_proj_weight'), 1
        )
    if module.in_proj_bias is not None:
        packed['in_proj_bias'] = 3
    biased = module.bias_k is not None
    return PruneGroup(
        name=path,
        granularity='head',
        size=module.num_heads,
        producers=tuple(
            Slice(f'{path}.{leaf}', 0, block=width, copies=copies)
            for leaf, copies in packed.items()
        ),
        consumers=(Slice(f'{path}.out_proj.weight', 1, block=width),),
        attrs={f'{path}.num_heads': 1},
        dense='learned key and value biases span the heads' if biased else '',
    )
