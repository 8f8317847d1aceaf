"""Heads and neurons of Hugging Face's GPT-2."""

from collections.abc import Iterator

from torch import nn

from ..groups import PruneGroup, Slice
from ..registry import FUNCTIONS


@FUNCTIONS.register_module()
def gpt2_groups(model: nn.Module) -> Iterator[PruneGroup]:
    """Yields heads and neurons of every GPT-2 block of a model.

    Its linear layers hold their weights ``[in, out]``.
    """
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind == 'GPT2Attention' and not module.is_cross_attention:
            yield _heads(path, module)
        elif kind == 'GPT2MLP':
            yield PruneGroup(
                name=path,
                granularity='neuron',
                size=module.c_fc.nf,
                producers=(
                    Slice(f'{path}.c_fc.weight', 1),
                    Slice(f'{path}.c_fc.bias', 0),
                ),
                consumers=(Slice(f'{path}.c_proj.weight', 0),),
            )


def _heads(path: str, module: nn.Module) -> PruneGroup:
    width = module.head_dim
    return PruneGroup(
        name=path,
        granularity='head',
        size=module.num_heads,
        producers=(
            Slice(f'{path}.c_attn.weight', 1, block=width, copies=3),
            Slice(f'{path}.c_attn.bias', 0, block=width, copies=3),
        ),
        consumers=(Slice(f'{path}.c_proj.weight', 0, block=width),),
        attrs={f'{path}.num_heads': 1, f'{path}.split_size': width},
    )
