"""Heads and neurons of Hugging Face's GPT-NeoX, as Pythia."""

from collections.abc import Iterator

from torch import nn

from ..groups import PruneGroup, Slice, rows
from ..registry import FUNCTIONS


@FUNCTIONS.register_module()
def gpt_neox_groups(model: nn.Module) -> Iterator[PruneGroup]:
    """Yields heads and neurons of every GPT-NeoX block of a model.

    Query, key and value of a head lie behind each other in one matrix.
    """
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind == 'GPTNeoXAttention':
            width = module.head_size
            qkv = f'{path}.query_key_value'
            yield PruneGroup(
                name=path,
                granularity='head',
                size=module.query_key_value.out_features // (3 * width),
                producers=rows(qkv, module.query_key_value, 3 * width),
                consumers=(Slice(f'{path}.dense.weight', 1, block=width),),
            )
        elif kind == 'GPTNeoXMLP':
            first = f'{path}.dense_h_to_4h'
            yield PruneGroup(
                name=path,
                granularity='neuron',
                size=module.dense_h_to_4h.out_features,
                producers=rows(first, module.dense_h_to_4h),
                consumers=(Slice(f'{path}.dense_4h_to_h.weight', 1),),
            )
