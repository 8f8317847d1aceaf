"""Scores become kept units or weights under a budget: the only place that
rounds."""

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .checks import check_sparsity

Keep = dict[str, list[int]]
_PART = 2**16
# Entries from which a sample says first where the threshold lies.
_MANY = 2**20


def _sorts_fast() -> bool:
    """Whether NumPy sorts in less time than it partitions.

    With AVX-512 it takes half of the time; from 2 on it partitions so, too.
    """
    if not np.__version__.startswith('1.'):
        return False
    known = np.core._multiarray_umath.__cpu_features__
    return known.get('AVX512_SKX', False)


_SORTS_FAST = _sorts_fast()


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


def fewest(min_keep: float, size: int) -> int:
    """Returns how many units of a group of ``size`` stay at least.

    ``min_keep`` is their number or, below 1, their fraction, so that no layer
    is all but emptied where all compete.
    """
    if min_keep >= 1:
        return min(int(min_keep), size)
    # 0.1 * 30 is 3.0000000000000004.
    return math.ceil(min_keep * size - 1e-9)


def allocate(
    scores: dict[str, Tensor],
    sparsity: float,
    *,
    round_to: int = 1,
    round_from: int = 0,
    min_keep: float = 1,
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
            given compete: call it once per granularity, or per layer.
        sparsity: Fraction of the units to remove, in ``[0, 1)``.
        round_to: The number of kept units of a group that loses any is a
            multiple of this.
        round_from: Groups of fewer units keep any number of them.
        min_keep: Units that every group keeps, see :func:`fewest`.
        fill_back: See :func:`num_removed`.
        strict: Whether a sparsity that ``min_keep`` does not allow is an
            error; if not, groups then keep just that many.

    Raises:
        ValueError: If the sparsity cannot be reached.
    """
    check_sparsity(sparsity)
    total = sum(len(s) for s in scores.values())
    count = num_removed(sparsity, total, fill_back)
    if not strict:
        kept = sum(fewest(min_keep, len(s)) for s in scores.values())
        count = min(count, total - kept)
    return remove_lowest(scores, count, round_to, min_keep, round_from)


def remove_lowest(
    scores: dict[str, Tensor],
    count: int,
    round_to: int = 1,
    min_keep: float = 1,
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
    min_keep: float = 1,
    round_from: int = 0,
) -> list[Chunk]:
    """Returns all removable units in the order in which they go.

    Any beginning of the list is a valid choice, see :func:`allocate`.

    Raises:
        ValueError: If a score is not finite, or an option too small.
    """
    if round_to < 1 or min_keep < 0 or min_keep > 1 and min_keep % 1:
        raise ValueError(
            'round_to and min_keep are numbers of units, at least 1 and 0, '
            'or min_keep below 1 their fraction, '
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
        least = fewest(min_keep, len(score))
        for chunk, key in _chunks(name, score, step, least):
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
    if values.device.type == 'cpu':
        # NumPy compares in a third and counts in a fifteenth of the time.
        array = values.detach().numpy()
        mask = torch.from_numpy(array <= threshold.numpy())
    else:
        mask = values <= threshold
    surplus = np.count_nonzero(mask.cpu().numpy(), axis=1) - count
    for row in surplus.nonzero()[0].tolist():
        array = values[row].detach().cpu().numpy()
        ties = np.flatnonzero(array == float(threshold[row]))
        mask[row, ties[len(ties) - int(surplus[row]) :]] = False
    return mask


def _kth_lowest(values: Tensor, count: int) -> Tensor:
    """The highest of the ``count`` lowest of each row, ``[rows, 1]``."""
    if values.device.type != 'cpu':
        return values.kthvalue(count, 1, keepdim=True).values
    array = values.detach().numpy()
    if len(array) == 1 and array.shape[1] >= _MANY:
        return values.new_tensor([[_kth_of_many(array[0], count)]])
    found = np.empty((len(array), 1), array.dtype)
    place, rows = count - 1, max(1, _PART // array.shape[1])
    starts = range(0, len(array), rows)

    def take(start: int) -> None:
        part = array[start : start + rows]
        ordered = np.sort(part) if _SORTS_FAST else np.partition(part, place)
        found[start : start + rows] = ordered[:, place : place + 1]

    # NumPy works outside of Python's lock, and parts stay in the cache.
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        # One part, as of a small layer, is not worth a thread.
        list((threads.map if len(starts) > 1 else map)(take, starts))
    return torch.from_numpy(found)


def _kth_of_many(values: np.ndarray, count: int) -> float:
    """The highest of the ``count`` lowest entries of ``[n]``, exactly.

    A sample gives two values between which it lies, almost surely; one pass
    counts what is below, and only what lies between is ordered. Floyd &
    Rivest, "Expected Time Bounds for Selection", CACM 1975.
    """
    sample = np.sort(values[:: len(values) // _PART])
    place = count * len(sample) // len(values)
    slack = 3 * math.isqrt(len(sample))  # six deviations of the place
    low, high = sample[max(place - slack, 0)], sample[-1]
    if place + slack < len(sample):
        high = sample[place + slack]
    if place < slack:
        low = -np.inf
    below, between = 0, []
    for start in range(0, len(values), _PART):
        part = values[start : start + _PART]
        under = part < low
        below += np.count_nonzero(under)
        between.append(part[(part <= high) ^ under])
    near = np.concatenate(between)
    if not below < count <= below + len(near):
        near, below = values, 0
    return np.partition(near, count - below - 1)[count - below - 1]


def _names(scores: dict[str, Tensor]) -> str:
    names = [repr(n) for n in list(scores)[:3]]
    more = len(scores) - len(names)
    return ', '.join(names) + (f' and {more} more groups' if more else '')
