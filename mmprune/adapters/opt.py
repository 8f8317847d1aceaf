"""Heads and neurons of Hugging Face's OPT."""

from collections.abc import Iterator

from torch import nn

from ..groups import PruneGroup, Slice, rows
from ..registry import FUNCTIONS


@FUNCTIONS.register_module()
def opt_groups(model: nn.Module) -> Iterator[PruneGroup]:
    """Yields heads and neurons of every OPT block of a model."""
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind == 'OPTAttention':
            yield _heads(path, module)
        elif kind == 'OPTDecoderLayer':
            yield PruneGroup(
                name=f'{path}.fc1',
                granularity='neuron',
                size=module.fc1.out_features,
                producers=rows(f'{path}.fc1', module.fc1),
                consumers=(Slice(f'{path}.fc2.weight', 1),),
            )


def _heads(path: str, module: nn.Module) -> PruneGroup:
    width = module.head_dim
    return PruneGroup(
        name=path,
        granularity='head',
        size=module.num_heads,
        producers=(
            *rows(f'{path}.q_proj', module.q_proj, width),
            *rows(f'{path}.k_proj', module.k_proj, width),
            *rows(f'{path}.v_proj', module.v_proj, width),
        ),
        consumers=(Slice(f'{path}.out_proj.weight', 1, block=width),),
        attrs={f'{path}.num_heads': 1},
    )
