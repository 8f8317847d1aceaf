"""Heads and neurons of Hugging Face's OPT."""

from collections.abc import Iterator

from torch import nn

from ..groups import PruneGroup, Slice
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
                producers=_rows(path, module, ('fc1',)),
                consumers=(Slice(f'{path}.fc2.weight', 1),),
            )


def _heads(path: str, module: nn.Module) -> PruneGroup:
    width = module.head_dim
    return PruneGroup(
        name=path,
        granularity='head',
        size=module.num_heads,
        producers=_rows(path, module, ('q_proj', 'k_proj', 'v_proj'), width),
        consumers=(Slice(f'{path}.out_proj.weight', 1, block=width),),
        attrs={f'{path}.num_heads': 1},
    )


def _rows(
    path: str, module: nn.Module, layers: tuple[str, ...], block: int = 1
) -> tuple[Slice, ...]:
    return tuple(
        Slice(f'{path}.{layer}.{leaf}', 0, block=block)
        for layer in layers
        for leaf, _ in module.get_submodule(layer).named_parameters()
    )
