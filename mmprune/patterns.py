"""N of every M neighbours: which of a group of weights go."""

import torch
from torch import Tensor

# Groups at a time, so that they stay in the cache.
_PART = 2**16


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
    # As planes, one per place in a group, so that all steps are contiguous.
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
