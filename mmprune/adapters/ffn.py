"""Hidden units between two linear layers of an ``nn.Sequential``."""

from collections.abc import Iterator

from torch import nn

from ..groups import PruneGroup, Slice, rows
from ..registry import FUNCTIONS

_ELEMENTWISE = (
    nn.Dropout,
    nn.ELU,
    nn.GELU,
    nn.Hardswish,
    nn.Identity,
    nn.LeakyReLU,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
)


@FUNCTIONS.register_module()
def ffn_groups(model: nn.Module) -> Iterator[PruneGroup]:
    """Yields hidden units of feed-forward networks and MLP branches.

    A unit lies between two linear layers of one ``nn.Sequential`` (nested
    ones count as one, as in mmcv's ``FFN``) with only elementwise layers in
    between. Where a norm lies between, the group says why it stays dense.
    """
    for path, module in _outermost_sequentials(model):
        writer, between = None, []
        for name, leaf in _leaves(path, module):
            if isinstance(leaf, nn.Linear):
                if writer is not None:
                    yield _hidden(*writer, name, between)
                writer, between = (name, leaf), []
            else:
                between.append(leaf)


def _outermost_sequentials(
    model: nn.Module, path: str = ''
) -> Iterator[tuple[str, nn.Sequential]]:
    if isinstance(model, nn.Sequential):
        yield path, model
        return
    for name, child in model.named_children():
        yield from _outermost_sequentials(
            child, f'{path}.{name}' if path else name
        )


def _leaves(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        name = f'{path}.{name}' if path else name
        if isinstance(child, nn.Sequential):
            yield from _leaves(name, child)
        else:
            yield name, child


def _hidden(
    first: str, layer: nn.Linear, second: str, between: list[nn.Module]
) -> PruneGroup:
    blocking = [
        type(m).__name__ for m in between if not isinstance(m, _ELEMENTWISE)
    ]
    return PruneGroup(
        name=first,
        granularity='neuron',
        size=layer.out_features,
        producers=rows(first, layer),
        consumers=(Slice(f'{second}.weight', 1),),
        dense=(
            f'{blocking[0]} over the hidden units: its result would change'
            if blocking
            else ''
        ),
    )
