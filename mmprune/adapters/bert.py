"""Heads and neurons of Hugging Face's BERT and its kin."""

from collections.abc import Iterator

from torch import nn

from ..groups import PruneGroup, Slice, rows
from ..registry import FUNCTIONS


@FUNCTIONS.register_module()
def bert_groups(model: nn.Module) -> Iterator[PruneGroup]:
    """Yields heads and neurons of every BERT or RoBERTa block of a model.

    A block is recognised by the names of its parts, which all models have
    that were made after BERT's pattern. Cross attention and key caches of
    decoders stay dense.
    """
    for path, module in model.named_modules():
        children = dict(module.named_children())
        if {'self', 'output'} <= children.keys():
            yield _heads(path, module)
        if {'intermediate', 'output'} <= children.keys():
            yield PruneGroup(
                name=f'{path}.intermediate',
                granularity='neuron',
                size=module.intermediate.dense.out_features,
                producers=rows(
                    f'{path}.intermediate.dense', module.intermediate.dense
                ),
                consumers=(Slice(f'{path}.output.dense.weight', 1),),
            )


def _heads(path: str, module: nn.Module) -> PruneGroup:
    attention = module.self
    width = attention.attention_head_size
    plain = {'query', 'key', 'value', 'dropout'} == {
        name for name, _ in attention.named_children()
    }
    dense = '' if plain else 'this kind of attention has no rule yet'
    if getattr(attention, 'is_decoder', False):
        dense = 'a decoder keeps keys and values of all heads'
    return PruneGroup(
        name=f'{path}.self',
        granularity='head',
        size=attention.num_attention_heads,
        producers=(
            *rows(f'{path}.self.query', attention.query, width),
            *rows(f'{path}.self.key', attention.key, width),
            *rows(f'{path}.self.value', attention.value, width),
        ),
        consumers=(Slice(f'{path}.output.dense.weight', 1, block=width),),
        attrs={
            f'{path}.self.num_attention_heads': 1,
            f'{path}.self.all_head_size': width,
        },
        dense=dense,
    )
