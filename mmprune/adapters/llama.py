"""Key/value groups of heads and neurons of LLaMA-type language models."""

from collections.abc import Iterator

from torch import nn

from ..groups import PruneGroup, Slice, rows
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
                producers=(
                    *rows(f'{path}.gate_proj', module.gate_proj),
                    *rows(f'{path}.up_proj', module.up_proj),
                ),
                consumers=(Slice(f'{path}.down_proj.weight', 1),),
            )


def _heads(path: str, module: nn.Module) -> PruneGroup:
    width = module.head_dim
    queries = width * module.num_key_value_groups
    return PruneGroup(
        name=path,
        granularity='head',
        size=module.k_proj.out_features // width,
        producers=(
            *rows(f'{path}.q_proj', module.q_proj, queries),
            *rows(f'{path}.k_proj', module.k_proj, width),
            *rows(f'{path}.v_proj', module.v_proj, width),
        ),
        consumers=(Slice(f'{path}.o_proj.weight', 1, block=queries),),
    )
