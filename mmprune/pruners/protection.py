"""Which groups stay dense because somebody says so."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from ..groups import PruneGroup


def protect(
    groups: Iterable[PruneGroup],
    patterns: Sequence[str],
    weights: Iterable[str] = (),
) -> list[PruneGroup]:
    """Returns the groups; protected ones carry the reason.

    Args:
        groups: All groups of the model.
        patterns: Regular expressions on names of groups and tensors.
        weights: Names of weights that a pattern may also mean, though no
            group has them.

    Raises:
        ValueError: If a pattern is no regular expression or matches nothing.
    """
    groups = list(groups)
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f'protect pattern {pattern!r} is no regular expression: '
                f'{error}'
            ) from error
        matched = [
            any(
                expression.search(text)
                for text in (g.name, *(s.tensor for s in g.slices))
            )
            for g in groups
        ]
        if not any(matched) and not any(map(expression.search, weights)):
            examples = ', '.join(g.name for g in groups[:3])
            raise ValueError(
                f'protect pattern {pattern!r} matches none of the '
                f'{len(groups)} groups; their names look like {examples}'
            )
        groups = [
            dataclasses.replace(g, dense=g.dense or f'protected by {pattern}')
            if hit
            else g
            for g, hit in zip(groups, matched, strict=True)
        ]
    return groups


def protect_frozen(
    groups: Iterable[PruneGroup], model: nn.Module
) -> list[PruneGroup]:
    """Returns the groups; those of frozen layers carry the reason.

    A layer that training freezes cannot recover from what it lost, so by
    default it keeps its units. Norm scales do not count: many configs freeze
    all of them.
    """
    frozen = {
        name
        for name, param in model.named_parameters()
        if param.ndim > 1 and not param.requires_grad
    }
    return [
        dataclasses.replace(g, dense='frozen in training')
        if not g.dense and frozen & {s.tensor for s in g.producers}
        else g
        for g in groups
    ]


def keep_other_kinds(
    groups: Sequence[PruneGroup], sparsity: Mapping[str, float]
) -> list[PruneGroup]:
    """Returns the groups; those of a kind without a sparsity stay dense.

    Raises:
        ValueError: If a granularity that is named has no open group.
    """
    found = {g.granularity for g in groups if not g.dense}
    missing = [kind for kind in sparsity if kind not in found]
    if missing or not sparsity:
        raise ValueError(
            f'sparsity names {list(sparsity)}, but of the {len(groups)} '
            f'groups only those of {sorted(found)} can be pruned; name just '
            'these'
        )
    return [
        g
        if g.dense or g.granularity in sparsity
        else dataclasses.replace(g, dense='no sparsity is asked of it')
        for g in groups
    ]
