"""Pruning from Python: a model and an example go in, a smaller model comes
out."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .adapters import (
    deformable_groups,
    distilbert_groups,
    ffn_groups,
    gpt2_groups,
    gpt_neox_groups,
    llama_groups,
    mha_groups,
    opt_groups,
    vit_groups,
)
from .cost import cost_table
from .criteria import criterion_config
from .discovery import discovered_groups
from .groups import PruneGroup
from .pruners import (
    LatencyPruner,
    StructuredPruner,
    check_groups,
    default_table,
    masked_difference,
)
from .pruners.verify import refuse_difference
from .surgery import apply_plan

# In this order a dimension of a tensor is given to a group.
ADAPTERS = (
    vit_groups,
    distilbert_groups,
    llama_groups,
    opt_groups,
    gpt2_groups,
    gpt_neox_groups,
    deformable_groups,
    mha_groups,
    ffn_groups,
)


def prune(
    model: nn.Module,
    example: Tensor | Sequence | Mapping,
    ratio: float = 0.3,
    *,
    criterion: str | dict | Callable = 'l1',
    scope: str = 'global',
    target: str = 'units',
    round_to: int = 1,
    min_keep: float = 1,
    protect: Sequence[str] = (),
    batches: Iterable[Any] = (),
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
) -> nn.Module:
    """Returns a smaller copy of a model; the model is left as it is.

    What was removed is in the copy's ``pruning_plan``. Before it is
    returned, its outputs for the example are compared with those of the
    model whose units are masked; groups of units for which the two differ
    stay whole.

    Args:
        model: Any model for which groups are found, see :func:`find_groups`.
        example: What the model is called with: a tensor, a tuple of
            arguments, or a dict of named ones.
        ratio: Fraction to remove, in ``[0, 1)``.
        criterion: A name of :data:`mmprune.criteria.CRITERIA`, as ``l1`` or
            ``taylor``, or a criterion or its config.
        scope: ``global``, ``layer`` or ``isomorphic``: where units compete.
        target: What the ratio counts: ``units``, ``params``, ``macs`` or
            ``latency``, measured here on the example and met within 3 %.
        round_to: Kept channels and neurons are a multiple of this.
        min_keep: Channels and neurons that every group keeps; below 1, the
            fraction of them.
        protect: Regular expressions; groups whose name or tensors match stay
            whole.
        batches: Calibration data, for ``taylor``.
        loss: Returns the loss of the model on a batch, for the same.

    Raises:
        ValueError: If no group is found, the ratio cannot be met, or the
            pruned model computes something else than the masked one.
    """
    if isinstance(criterion, str):
        criterion = criterion_config(criterion)
    pruner = StructuredPruner(
        ratio,
        importance=criterion,
        target='macs' if target == 'latency' else target,
        scope=scope,
        round_to=round_to,
        min_keep=min_keep,
        protect=protect,
    )

    def forward(net: nn.Module) -> Any:
        return call(net, example)

    dense = copy.deepcopy(model)
    # A statement: `eval` of mmdet's distilled detectors returns nothing.
    dense.eval()
    groups = check_groups(dense, find_groups(dense, forward), forward)
    if all(group.dense for group in groups):
        raise ValueError(_nothing_found(model, groups))
    costs = cost_table(dense, forward) if target != 'units' else None
    choose: Any = pruner
    if target == 'latency':
        choose = LatencyPruner(pruner, forward, default_table())
    plan = choose(dense, groups, batches=batches, loss_fn=loss, costs=costs)
    refuse_difference(masked_difference(dense, plan, forward))
    pruned = copy.deepcopy(model)
    apply_plan(pruned, plan)
    return pruned


def call(model: nn.Module, example: Tensor | Sequence | Mapping) -> Any:
    """Returns the outputs of a model for an example."""
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, Tensor):
        return model(example)
    return model(*example)


def find_groups(
    model: nn.Module, forward: Callable[[nn.Module], Any]
) -> list[PruneGroup]:
    """Returns the groups of any model: those of adapters, then all others.

    All adapters are asked. Where two of them cut the same dimension of a
    tensor, the group that comes second stays whole and says so. What no
    adapter knows is discovered from one run of the model.
    """
    owners: dict[tuple[str, int], tuple[Any, str]] = {}
    groups = []
    for find in ADAPTERS:
        for group in _asked(find, model):
            group = _named_once(group, groups)
            if not group.dense:
                group = _without_overlap(group, find, owners)
            groups.append(group)
    for group in discovered_groups(model, forward):
        if owners.keys() & {(part.tensor, part.dim) for part in group.slices}:
            continue
        groups.append(_named_once(group, groups))
    return groups


def _asked(find: Callable, model: nn.Module) -> list[PruneGroup]:
    try:
        return list(find(model))
    except AttributeError as error:
        # A class of the name that the adapter knows, and of another make.
        warnings.warn(
            f'{find.__name__} does not fit this model and is left out: '
            f'{error}',
            stacklevel=4,
        )
        return []


def _named_once(group: PruneGroup, groups: list[PruneGroup]) -> PruneGroup:
    """The group, under a name that no other has."""
    names = {g.name for g in groups}
    if group.name not in names:
        return group
    return replace(group, name=f'{group.name} ({group.granularity}s)')


def _without_overlap(
    group: PruneGroup,
    find: Callable,
    owners: dict[tuple[str, int], tuple[Any, str]],
) -> PruneGroup:
    """The group; whole if another adapter has one of its dimensions."""
    places = {(part.tensor, part.dim) for part in group.slices}
    for place in sorted(places):
        owner, name = owners.get(place, (find, ''))
        # One adapter's groups are made for each other, as heads and points
        # of an attention.
        if owner is not find:
            return replace(
                group,
                dense=f'dimension {place[1]} of {place[0]} belongs to {name}',
            )
    owners.update(dict.fromkeys(places, (find, group.name)))
    return group


def _nothing_found(model: nn.Module, groups: list[PruneGroup]) -> str:
    reasons = sorted({group.dense for group in groups})
    why = f' ({"; ".join(reasons[:3])})' if reasons else ''
    return (
        f'no units of {type(model).__name__} can be removed: {len(groups)} '
        f'groups were found and none is open{why}; write its groups as in '
        'docs/add_a_family.md'
    )
