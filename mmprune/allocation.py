"""Scores become kept units or weights under a budget: the only place that
rounds."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .checks import check_choice, check_sparsity

Keep = dict[str, list[int]]
_PART = 2**16


class Chunk(NamedTuple):
    """Units of one group that go together, lowest scores first."""

    group: str
    units: tuple[int, ...]


def round_half_up(value: float) -> int:
    """Returns the nearest integer, halves upwards (Python rounds to even)."""
    return math.floor(value + 0.5)


def num_removed(sparsity: float, total: int, fill_back: float = 0.0) -> int:
    """Returns how many of ``total`` units a sparsity removes.

    Args:
        sparsity: Fraction to remove, in ``[0, 1)``.
        total: Number of units.
        fill_back: Fraction of those that would be removed which stays; 0
            keeps none of them, 1 all.
    """
    count = round_half_up(sparsity * total)
    # 0.29 * 100 is 28.999999999999996.
    return count - math.floor(fill_back * count + 1e-9)


def allocate(
    scores: dict[str, Tensor],
    sparsity: float,
    *,
    scope: str = 'global',
    round_to: int = 1,
    round_from: int = 0,
    min_keep: int = 1,
    fill_back: float = 0.0,
    strict: bool = True,
) -> Keep:
    """Returns the units that stay when ``sparsity`` of all units go.

    Exactly :func:`num_removed` units go (with ``round_to`` the nearest
    number that whole chunks reach), those with the lowest scores first; of
    equal scores, first those of the group that lost the smaller part, then
    in the order of groups and units.

    Args:
        scores: Group name -> importance ``[size]``, high = keep. All units
            given compete: call it once per granularity.
        sparsity: Fraction of the units to remove, in ``[0, 1)``.
        scope: ``global`` (all units compete) or ``layer`` (each group loses
            the same fraction).
        round_to: The number of kept units of a group that loses any is a
            multiple of this.
        round_from: Groups of fewer units keep any number of them.
        min_keep: Units that every group keeps.
        fill_back: See :func:`num_removed`.
        strict: Whether a sparsity that ``min_keep`` does not allow is an
            error; if not, groups then keep just that many.

    Raises:
        ValueError: If the sparsity cannot be reached.
    """
    check_sparsity(sparsity)
    check_choice('scope', scope, ('global', 'layer'))
    parts = [scores]
    if scope == 'layer':
        parts = [{name: score} for name, score in scores.items()]
    keep = {}
    for part in parts:
        total = sum(len(s) for s in part.values())
        count = num_removed(sparsity, total, fill_back)
        if not strict:
            count = min(count, total - min_keep * len(part))
        keep |= remove_lowest(part, count, round_to, min_keep, round_from)
    return keep


def remove_lowest(
    scores: dict[str, Tensor],
    count: int,
    round_to: int = 1,
    min_keep: int = 1,
    round_from: int = 0,
) -> Keep:
    """Returns the units that stay when the ``count`` lowest go.

    Raises:
        ValueError: If so many cannot go.
    """
    order = removal_order(scores, round_to, min_keep, round_from)
    taken, removed = 0, 0
    for chunk in order:
        # With chunks of several units: the number nearest to the budget.
        if removed + len(chunk.units) / 2 > count or removed >= count:
            break
        removed += len(chunk.units)
        taken += 1
    reachable = sum(len(c.units) for c in order)
    if reachable < count:
        total = sum(len(s) for s in scores.values())
        why, what = 'every group keeps one, which lets', 'the sparsity'
        if (min_keep, round_to) != (1, 1):
            why = f'min_keep={min_keep} and round_to={round_to} let'
            what = 'the sparsity or one of them'
        raise ValueError(
            f'{count} of {total} units of {_names(scores)} would have to be '
            f'removed, but {why} only {reachable} '
            f'({reachable / total:.1%}) be removed; lower {what}'
        )
    return keep_after(scores, order[:taken])


def removal_order(
    scores: dict[str, Tensor],
    round_to: int = 1,
    min_keep: int = 1,
    round_from: int = 0,
) -> list[Chunk]:
    """Returns all removable units in the order in which they go.

    Any beginning of the list is a valid choice, see :func:`allocate`.

    Raises:
        ValueError: If a score is not finite, or an option too small.
    """
    if round_to < 1 or min_keep < 0:
        raise ValueError(
            'round_to and min_keep are numbers of units, at least 1 and 0, '
            f'found {round_to} and {min_keep}'
        )
    keyed = []
    for name, score in scores.items():
        step = round_to if len(score) >= round_from else 1
        if not torch.isfinite(score).all():
            raise ValueError(
                f'group {name!r}: the importance is not finite; check the '
                'weights and the calibration data for NaN'
            )
        removed = 0
        for chunk, key in _chunks(name, score, step, min_keep):
            # Equal scores everywhere (fresh norm scales) shrink all groups
            # alike instead of emptying the first one.
            keyed.append((key, removed / len(score), len(keyed), chunk))
            removed += len(chunk.units)
    return [chunk for *_, chunk in sorted(keyed)]


def _chunks(
    name: str, score: Tensor, round_to: int, min_keep: int
) -> Iterable[tuple[Chunk, float]]:
    ordered, order = torch.sort(score, stable=True)
    units, size = order.tolist(), len(score)
    # The first chunk is shorter if the dense size is no multiple.
    first = size % round_to or round_to
    ends = range(first, size - min_keep + 1, round_to)
    if not ends:
        return
    ordered = ordered.double()
    rest = ordered[first : ends[-1]].view(-1, round_to).mean(1)
    means = torch.cat([ordered[:first].mean()[None], rest])
    # A chunk never goes before the one below it in the same group.
    keys = means.cummax(0).values.tolist()
    for start, end, key in zip((0, *ends), ends, keys, strict=False):
        yield Chunk(name, tuple(units[start:end])), key


def keep_after(scores: dict[str, Tensor], removed: Iterable[Chunk]) -> Keep:
    """Returns the sorted units that stay without the chunks."""
    dropped: dict[str, set[int]] = {name: set() for name in scores}
    for chunk in removed:
        dropped[chunk.group].update(chunk.units)
    return {
        name: [i for i in range(len(score)) if i not in dropped[name]]
        for name, score in scores.items()
    }


def merge_orders(
    parts: list[tuple[dict[str, Tensor], list[Chunk]]],
) -> list[Chunk]:
    """Returns one order in which every part shrinks by the same fraction.

    Used when kinds of units that do not compete (heads, channels, layers)
    share one budget of parameters or MACs.
    """
    keyed = []
    for number, (scores, order) in enumerate(parts):
        total, removed = sum(len(s) for s in scores.values()), 0
        for place, chunk in enumerate(order):
            middle = removed + len(chunk.units) / 2
            removed += len(chunk.units)
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

    The longest beginning of ``order`` above the budget goes; what is then
    missing is taken from the following chunks that still fit.

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


def spread_sparsity(
    worth: Sequence[float],
    sizes: Sequence[int],
    sparsity: float,
    limit: float,
) -> list[float]:
    """Returns a sparsity for each part, lower where it is worth more.

    Linear in the worth; the mean, weighted by size, is the sparsity, and the
    most and the least worthy part differ by twice the limit.

    Args:
        worth: Of each part, in any unit.
        sizes: Weights of each part.
        sparsity: Of all parts together.
        limit: Half of the largest difference.

    Raises:
        ValueError: If a part would lose less than nothing or all.
    """
    span = max(worth) - min(worth)
    scaled = [2 * limit * (w - min(worth)) / (span or 1.0) for w in worth]
    total = sum(sizes)
    mean = sum(s * n for s, n in zip(scaled, sizes, strict=True)) / total
    found = [sparsity + mean - s for s in scaled]
    if min(found) < 0 or max(found) >= 1:
        raise ValueError(
            f'a sparsity of {sparsity:g} that differs by up to {limit:g} '
            f'would be {min(found):.3f} in one part and {max(found):.3f} in '
            'another; lower the limit'
        )
    return found


def lowest(values: Tensor, count: int) -> Tensor:
    """Returns a boolean mask of exactly ``count`` lowest entries of ``[n]``.

    Ties at the threshold go in the order of their position, so the same
    input always gives the same mask.
    """
    return lowest_per_row(values[None], count)[0]


def lowest_overall(
    values: Mapping[str, Tensor], sparsity: float
) -> dict[str, Tensor]:
    """Returns masks of exactly the lowest entries of all tensors together."""
    flat = torch.cat([value.flatten() for value in values.values()])
    mask = lowest(flat, round_half_up(sparsity * len(flat)))
    parts = mask.split([value.numel() for value in values.values()])
    return {
        name: part.view(value.shape)
        for (name, value), part in zip(values.items(), parts, strict=True)
    }


def lowest_per_row(values: Tensor, count: int) -> Tensor:
    """Returns a boolean mask of exactly ``count`` lowest entries per row.

    Of ties the first; scores are ``[rows, n]``.
    """
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = _kth_lowest(values, count)
    mask = values <= threshold
    # NumPy counts booleans in a fifteenth of the time.
    surplus = np.count_nonzero(mask.cpu().numpy(), axis=1) - count
    for row in surplus.nonzero()[0].tolist():
        ties = (values[row] == threshold[row]).nonzero().flatten()
        mask[row, ties[len(ties) - int(surplus[row]) :]] = False
    return mask


def _kth_lowest(values: Tensor, count: int) -> Tensor:
    """The highest of the ``count`` lowest entries of each row, ``[rows, 1]``.

    NumPy's partition takes two thirds of the time of ``Tensor.kthvalue``.
    """
    if values.device.type != 'cpu':
        return values.kthvalue(count, 1, keepdim=True).values
    parted = np.partition(values.detach().numpy(), count - 1, axis=1)
    return torch.from_numpy(parted[:, count - 1 : count].copy())


def lowest_of_group(values: Tensor, count: int, size: int) -> Tensor:
    """Returns a mask of the ``count`` lowest of every ``size`` neighbours.

    Args:
        values: Scores ``[rows, n]``, n a multiple of ``size``.
        count: How many to select in each group, 0 to size; of ties the
            first.
        size: Neighbours along a row that form a group.
    """
    groups = values.reshape(-1, size)
    mask = torch.empty_like(groups, dtype=torch.bool)
    # In parts that stay in the cache, as planes: one per place in a group,
    # so that all steps are contiguous.
    for start in range(0, len(groups), _PART):
        planes = groups[start : start + _PART].T.contiguous()
        mask[start : start + _PART] = lowest_of_planes(planes, count).T
    return mask.view(values.shape)


def lowest_of_planes(planes: Tensor, count: int) -> Tensor:
    """Returns a mask of the ``count`` lowest of every column.

    Args:
        planes: Scores ``[size, n]``, a row for each place in a group.
        count: How many to select in each column; of ties the first.
    """
    size = len(planes)
    # How many of its group a place lets go first: at most all behind it.
    before = torch.arange(size - 1, -1, -1, device=planes.device)
    before = before.to(torch.uint8)[:, None].repeat(1, planes.shape[1])
    for first in range(size):
        for second in range(first + 1, size):
            ordered = planes[first] <= planes[second]
            before[second] += ordered.view(torch.uint8)
            before[first] -= ordered.view(torch.uint8)
    return before < count


def _names(scores: dict[str, Tensor]) -> str:
    names = [repr(n) for n in list(scores)[:3]]
    more = len(scores) - len(names)
    return ', '.join(names) + (f' and {more} more groups' if more else '')
