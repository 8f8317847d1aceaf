"""Heads and neurons of Hugging Face's DistilBERT."""

from collections.abc import Iterator

from torch import nn

from ..groups import PruneGroup, Slice, rows
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
                producers=rows(f'{path}.lin1', module.lin1),
                consumers=(Slice(f'{path}.lin2.weight', 1),),
            )


def _heads(path: str, module: nn.Module) -> PruneGroup:
    width = module.attention_head_size
    return PruneGroup(
        name=path,
        granularity='head',
        size=module.n_heads,
        producers=(
            *rows(f'{path}.q_lin', module.q_lin, width),
            *rows(f'{path}.k_lin', module.k_lin, width),
            *rows(f'{path}.v_lin', module.v_lin, width),
        ),
        consumers=(Slice(f'{path}.out_lin.weight', 1, block=width),),
        attrs={f'{path}.n_heads': 1, f'{path}.dim': width},
    )
