"""Scores become kept units under a budget: the only place that rounds."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

Keep = dict[str, list[int]]


class Chunk(NamedTuple):
    """Units of one group that go together, lowest scores first."""

    group: str
    units: tuple[int, ...]


def round_half_up(value: float) -> int:
    """Returns the nearest integer, halves upwards (Python rounds to even)."""
    return math.floor(value + 0.5)


def allocate(
    scores: dict[str, Tensor],
    sparsity: float,
    *,
    scope: str = 'global',
    round_to: int = 1,
    min_keep: int = 1,
) -> Keep:
    """Returns the units that stay when ``sparsity`` of all units go.

    Exactly ``round_half_up(sparsity * total)`` units go (with ``round_to``
    the nearest number that whole chunks reach), those with the lowest scores
    first; of equal scores, first those of the group that lost the smaller
    part, then in the order of groups and units.

    Args:
        scores: Group name -> importance ``[size]``, high = keep. All units
            given compete: call it once per granularity.
        sparsity: Fraction of the units to remove, in ``[0, 1)``.
        scope: ``global`` (all units compete) or ``layer`` (each group loses
            the same fraction).
        round_to: The number of kept units of a group that loses any is a
            multiple of this.
        min_keep: Units that every group keeps.

    Raises:
        ValueError: If the sparsity cannot be reached.
    """
    check_sparsity(sparsity)
    check_scope(scope)
    if scope == 'layer':
        keep = {}
        for name, score in scores.items():
            order = removal_order({name: score}, round_to, min_keep)
            keep |= _remove({name: score}, order, sparsity, min_keep)
        return keep
    order = removal_order(scores, round_to, min_keep)
    return _remove(scores, order, sparsity, min_keep)


def removal_order(
    scores: dict[str, Tensor], round_to: int = 1, min_keep: int = 1
) -> list[Chunk]:
    """Returns all removable units in the order in which they go.

    Any beginning of the list is a valid choice: it leaves ``min_keep`` units
    and a multiple of ``round_to`` in every group.

    Args:
        scores: Group name -> importance ``[size]``, high = keep.
        round_to: Chunks bring the kept units to multiples of this.
        min_keep: Units that every group keeps.

    Raises:
        ValueError: If a score is not finite, or an option below one.
    """
    if round_to < 1 or min_keep < 1:
        raise ValueError(
            'round_to and min_keep are numbers of units and at least 1, '
            f'found {round_to} and {min_keep}'
        )
    keyed = []
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise ValueError(
                f'group {name!r}: the importance is not finite; check the '
                'weights and the calibration data for NaN'
            )
        gone = 0
        for chunk, key in _chunks(name, score, round_to, min_keep):
            # Equal scores everywhere (fresh norm scales) shrink all groups
            # alike instead of emptying the first one.
            keyed.append((key, gone / len(score), len(keyed), chunk))
            gone += len(chunk.units)
    return [chunk for *_, chunk in sorted(keyed)]


def _chunks(
    name: str, score: Tensor, round_to: int, min_keep: int
) -> Iterable[tuple[Chunk, float]]:
    size = len(score)
    order = torch.sort(score, stable=True).indices.tolist()
    start, key = 0, -math.inf
    # The first chunk is shorter if the dense size is no multiple.
    stop = size % round_to or round_to
    while size - stop >= max(min_keep, 1):
        units = tuple(order[start:stop])
        # A chunk never goes before the one below it in the same group.
        key = max(key, score[list(units)].double().mean().item())
        yield Chunk(name, units), key
        start, stop = stop, stop + round_to


def _remove(
    scores: dict[str, Tensor],
    order: list[Chunk],
    sparsity: float,
    min_keep: int,
) -> Keep:
    total = sum(len(s) for s in scores.values())
    budget = round_half_up(sparsity * total)
    taken, gone = 0, 0
    for chunk in order:
        # With chunks of several units: the number nearest to the budget.
        if gone + len(chunk.units) / 2 > budget or gone >= budget:
            break
        gone += len(chunk.units)
        taken += 1
    reachable = sum(len(c.units) for c in order)
    if gone < budget and taken == len(order) and reachable < budget:
        raise ValueError(
            f'sparsity {sparsity:g} asks for {budget} of {total} units of '
            f'{_names(scores)} to go, but min_keep={min_keep} and round_to '
            f'let only {reachable} go; lower one of them'
        )
    return keep_after(scores, order[:taken])


def keep_after(scores: dict[str, Tensor], removed: Iterable[Chunk]) -> Keep:
    """Returns the sorted units that stay when the chunks have gone."""
    gone: dict[str, set[int]] = {name: set() for name in scores}
    for chunk in removed:
        gone[chunk.group].update(chunk.units)
    return {
        name: [i for i in range(len(score)) if i not in gone[name]]
        for name, score in scores.items()
    }


def merge_orders(
    parts: list[tuple[dict[str, Tensor], list[Chunk]]],
) -> list[Chunk]:
    """Returns one order in which every part shrinks by the same fraction.

    Used when kinds of units that do not compete (heads, channels, layers)
    share one budget of parameters or MACs.

    Args:
        parts: Scores and removal order of each part.
    """
    keyed = []
    for number, (scores, order) in enumerate(parts):
        total, gone = sum(len(s) for s in scores.values()), 0
        for place, chunk in enumerate(order):
            middle = gone + len(chunk.units) / 2
            gone += len(chunk.units)
            keyed.append((middle / total, number, place, chunk))
    return [chunk for *_, chunk in sorted(keyed)]


def meet_budget(
    scores: dict[str, Tensor],
    order: list[Chunk],
    cost: Callable[[Keep], float],
    budget: float,
    tolerance: float,
) -> Keep:
    """Returns kept units whose cost is the budget, within the tolerance.

    The longest beginning of ``order`` that stays above the budget goes; what
    is then missing is taken from the following chunks that still fit.

    Args:
        scores: Group name -> importance, for the sizes of the groups.
        order: Chunks in the order in which they go.
        cost: Cost of a model that keeps the given units; falls as units go.
        budget: The cost to reach.
        tolerance: The largest difference to the budget.

    Raises:
        ValueError: If the budget is below the cost of the smallest model, or
            no choice of chunks comes near enough.
    """
    smallest = cost(keep_after(scores, order))
    if smallest > budget + tolerance:
        dense = cost(keep_after(scores, []))
        raise ValueError(
            f'asked to remove {1 - budget / dense:.1%}, but without all '
            f'{len(order)} removable chunks of units '
            f'{smallest / dense:.1%} still remain; lower the ratio, protect '
            'less or lower min_keep'
        )
    low, high = 0, len(order)  # cost(low) >= budget > cost(high)
    while high - low > 1:
        middle = (low + high) // 2
        if cost(keep_after(scores, order[:middle])) >= budget:
            low = middle
        else:
            high = middle
    chosen = list(order[:low])
    blocked: set[str] = set()
    for chunk in order[low:]:
        if cost(keep_after(scores, chosen)) <= budget + tolerance / 4:
            break
        # Within a group the order holds: skip one, skip those behind it.
        if chunk.group in blocked:
            continue
        if cost(keep_after(scores, [*chosen, chunk])) >= budget - tolerance:
            chosen.append(chunk)
        else:
            blocked.add(chunk.group)
    keep = keep_after(scores, chosen)
    reached = cost(keep)
    if abs(reached - budget) > tolerance:
        raise ValueError(
            f'the budget of {budget:.4g} cannot be met within '
            f'{tolerance:.2g}: {reached:.4g} is the nearest that whole '
            'chunks of units reach; lower round_to or change the ratio'
        )
    return keep


def lowest(values: Tensor, count: int) -> Tensor:
    """Returns a boolean mask of exactly ``count`` lowest entries.

    Ties at the threshold go in the order of their position, so the same
    input always gives the same mask.

    Args:
        values: Scores ``[n]``.
        count: How many to select, 0 to n.
    """
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = values.kthvalue(count).values
    mask = values < threshold
    ties = (values == threshold).nonzero().flatten()
    mask[ties[: count - int(mask.sum())]] = True
    return mask


def check_sparsity(sparsity: float) -> None:
    """Raises ``ValueError`` if a sparsity is outside ``[0, 1)``."""
    if not 0 <= sparsity < 1:
        raise ValueError(
            f'the fraction to remove must be in [0, 1), found {sparsity:g}'
        )


def check_scope(scope: str) -> None:
    """Raises ``ValueError`` if a scope is neither of the two."""
    if scope not in ('global', 'layer'):
        raise ValueError(f"scope must be 'global' or 'layer', found {scope!r}")


def _names(scores: dict[str, Tensor]) -> str:
    names = [repr(n) for n in list(scores)[:3]]
    more = len(scores) - len(names)
    return ', '.join(names) + (f' and {more} more groups' if more else '')
