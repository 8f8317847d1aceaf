"""Key/value groups of heads and neurons of LLaMA-type language models."""

from collections.abc import Iterator

from torch import nn

from ..groups import PruneGroup, Slice
from ..registry import FUNCTIONS


@FUNCTIONS.register_module()
def llama_groups(model: nn.Module) -> Iterator[PruneGroup]:
    """Yields heads and neurons of every block of a LLaMA-type model.

    With grouped-query attention a unit is one key/value head together with
    all query heads that read it, so their ratio never changes.
    """
    for path, module in model.named_modules():
        children = dict(module.named_children())
        if {'q_proj', 'k_proj', 'v_proj', 'o_proj'} <= children.keys():
            yield _heads(path, module)
        elif {'gate_proj', 'up_proj', 'down_proj'} <= children.keys():
            yield PruneGroup(
                name=path,
                granularity='neuron',
                size=module.up_proj.out_features,
                producers=_rows(path, module, {'gate_proj': 1, 'up_proj': 1}),
                consumers=(Slice(f'{path}.down_proj.weight', 1),),
            )


def _rows(
    path: str, module: nn.Module, blocks: dict[str, int]
) -> tuple[Slice, ...]:
    return tuple(
        Slice(f'{path}.{layer}.{leaf}', 0, block=block)
        for layer, block in blocks.items()
        for leaf, _ in module.get_submodule(layer).named_parameters()
    )


def _heads(path: str, module: nn.Module) -> PruneGroup:
    width = module.head_dim
    queries = width * module.num_key_value_groups
    blocks = {'q_proj': queries, 'k_proj': width, 'v_proj': width}
    return PruneGroup(
        name=path,
        granularity='head',
        size=module.k_proj.out_features // width,
        producers=_rows(path, module, blocks),
        consumers=(Slice(f'{path}.o_proj.weight', 1, block=queries),),
    )
