"""What the elements of a model cost, to price many plans quickly."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .groups import PruneGroup


@dataclass(frozen=True)
class CostTable:
    """What one element of each weight costs, to price a plan quickly.

    A plan's cost is the sum over tensors of (elements kept x cost of one
    element). For convolutions and linear layers this is exact; products
    between activations are charged to the projections that make them, which
    is exact when units are heads.

    Args:
        shapes: Name of each parameter and buffer -> shape when dense.
        params: Parameter name -> 1.
        macs: Parameter name -> multiply-adds per element.
        counted: Multiply-adds of the forward they come from, with those that
            no weight is charged with; ``None`` if none ran.
    """

    shapes: dict[str, tuple[int, ...]]
    params: dict[str, float]
    macs: dict[str, float]
    counted: int | None = None

    def total(self, unit: str) -> float:
        """Returns the ``params`` or ``macs`` of the dense model."""
        prices = getattr(self, unit).items()
        return sum(p * math.prod(self.shapes[name]) for name, p in prices)


def kept_cost(
    table: CostTable, unit: str, groups: Iterable[PruneGroup]
) -> Callable[[Mapping[str, Sequence[int]]], float]:
    """Returns a function from kept units to the cost of that model.

    It is asked hundreds of times a second: where one slice lies on a
    dimension, counting units is enough.
    """
    prices = getattr(table, unit)
    places = defaultdict(list)
    for group in groups:
        for part in group.slices:
            if part.tensor in prices:
                places[part.tensor, part.dim].append((group, part))
    touched = {name for name, _ in places}
    fixed = table.total(unit) - sum(
        prices[name] * math.prod(table.shapes[name]) for name in touched
    )
    indices = {
        (group.name, part): part.index(range(group.size), group.size)
        .view(part.copies, group.size, part.block)
        .numpy()
        for parts in places.values()
        if len(parts) > 1
        for group, part in parts
    }

    def kept(size: int, parts: list, keep: Mapping) -> int:
        if len(parts) == 1:
            ((group, part),) = parts
            lost = group.size - len(keep[group.name])
            return size - lost * part.block * part.copies
        stays = np.ones(size, dtype=bool)
        for group, part in parts:
            dropped = np.ones(group.size, dtype=bool)
            dropped[list(keep[group.name])] = False
            stays[indices[group.name, part][:, dropped]] = False
        return int(stays.sum())

    def cost(keep: Mapping[str, Sequence[int]]) -> float:
        elements = {n: list(table.shapes[n]) for n in touched}
        for (name, dim), parts in places.items():
            elements[name][dim] = kept(table.shapes[name][dim], parts, keep)
        return fixed + sum(
            prices[name] * math.prod(shape) for name, shape in elements.items()
        )

    return cost
