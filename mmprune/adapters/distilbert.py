"""Heads and neurons of Hugging Face's DistilBERT."""

from collections.abc import Iterator

from torch import nn

from ..groups import PruneGroup, Slice
from ..registry import FUNCTIONS


@FUNCTIONS.register_module()
def distilbert_groups(model: nn.Module) -> Iterator[PruneGroup]:
    """Yields heads and neurons of every DistilBERT block of a model."""
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind == 'DistilBertSelfAttention':
            yield _heads(path, module)
        elif kind == 'FFN' and hasattr(module, 'lin1'):
            yield PruneGroup(
                name=path,
                granularity='neuron',
                size=module.lin1.out_features,
                producers=tuple(
                    Slice(f'{path}.lin1.{leaf}') for leaf in ('weight', 'bias')
                ),
                consumers=(Slice(f'{path}.lin2.weight', 1),),
            )


def _heads(path: str, module: nn.Module) -> PruneGroup:
    width = module.attention_head_size
    return PruneGroup(
        name=path,
        granularity='head',
        size=module.n_heads,
        producers=tuple(
            Slice(f'{path}.{layer}.{leaf}', 0, block=width)
            for layer in ('q_lin', 'k_lin', 'v_lin')
            for leaf in ('weight', 'bias')
        ),
        consumers=(Slice(f'{path}.out_lin.weight', 1, block=width),),
        attrs={f'{path}.n_heads': 1, f'{path}.dim': width},
    )
