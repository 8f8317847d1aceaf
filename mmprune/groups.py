"""What must be removed together: slices of tensors and groups of units."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slice:
    """Where the units of a group lie along one dimension of a tensor.

    Unit ``i`` owns ``block`` neighbouring positions in each of ``copies``
    stacked parts: copy ``c`` of unit ``i`` starts at
    ``offset + (c * size + i) * block``, with ``size`` the number of units of
    the group in the dense model.

    Args:
        tensor: Name of the parameter or buffer, as in the state dict.
        dim: The dimension of the tensor that holds the units.
        block: Positions of one unit in one copy.
        offset: First position of unit 0 in the first copy.
        copies: Number of stacked parts, 3 for a fused qkv projection.
        fill: Value that the positions of a removed unit take in a masked
            model. 0 where a unit is multiplied by its consumer; a large
            negative number for a logit that a softmax reads.
        positions: Where the units lie if no such pattern says it, as after a
            channel shuffle: ``block`` positions of unit 0, then of unit 1,
            and so on. ``offset`` and ``copies`` do not count then.
    """

    tensor: str
    dim: int = 0
    block: int = 1
    offset: int = 0
    copies: int = 1
    fill: float = 0.0
    positions: tuple[int, ...] = ()

    def index(self, units: Sequence[int], size: int) -> Tensor:
        """Returns the positions of ``units``, ``[copies*len(units)*block]``.

        Args:
            units: Indices of units in the dense model.
            size: Number of units of the group in the dense model.
        """
        return torch.from_numpy(self.places(units, size))

    def places(self, units: Sequence[int], size: int) -> np.ndarray:
        """Returns what :meth:`index` does, for the many of a whole plan."""
        unit = np.asarray(units, np.int64)
        if self.positions:
            owned = np.array(self.positions).reshape(size, self.block)
            return owned[unit].ravel()
        copy = np.arange(self.copies).reshape(-1, 1, 1) * size
        start = self.offset + (copy + unit[:, None]) * self.block
        return (start + np.arange(self.block)).ravel()

    def end(self, size: int) -> int:
        """Returns the first position after the last unit."""
        if self.positions:
            return max(self.positions) + 1
        return self.offset + self.copies * size * self.block


@dataclass(frozen=True)
class PruneGroup:
    """Units that can be removed, and all tensors that lose them together.

    Args:
        name: Unique name, usually the path of the module that makes them.
        granularity: ``channel``, ``head``, ``neuron``, ``point`` or
            ``layer``. Units compete with units of their own granularity.
        size: Number of units in the dense model.
        producers: Slices that write the units.
        consumers: Slices that read the units; setting them to their ``fill``
            makes the model compute what it computes without the unit.
        attrs: Module attributes (``'attn.num_heads'``) that follow the number
            of kept units -> what one unit contributes.
        dense: Why the units cannot be removed, empty if they can. Such a
            group is listed in reports and never pruned.
    """

    name: str
    granularity: str
    size: int
    producers: tuple[Slice, ...]
    consumers: tuple[Slice, ...] = ()
    attrs: dict[str, int] = field(default_factory=dict)
    dense: str = ''

    @property
    def slices(self) -> tuple[Slice, ...]:
        """All slices, producers first."""
        return self.producers + self.consumers


def rows(
    path: str, layer: nn.Module, block: int = 1, copies: int = 1
) -> tuple[Slice, ...]:
    """Returns the rows of a layer's weight and bias, which write units."""
    return tuple(
        Slice(f'{path}.{leaf}', 0, block=block, copies=copies)
        for leaf, _ in layer.named_parameters(recurse=False)
    )


def unit_sums(values: Tensor, part: Slice, size: int) -> Tensor:
    """Returns the sum of a tensor's ``values`` over each unit, ``[size]``."""
    per_position = values.movedim(part.dim, 0).reshape(
        values.shape[part.dim], -1
    )
    per_position = per_position.sum(1)
    index = part.index(range(size), size).to(values.device)
    parts = per_position[index].view(part.copies, size, part.block)
    return parts.sum((0, 2))


def unit_elements(shape: torch.Size, part: Slice) -> int:
    """Returns how many elements of a tensor of ``shape`` one unit owns."""
    return shape.numel() // shape[part.dim] * part.block * part.copies


def matrices(
    group: PruneGroup, tensors: Mapping[str, Tensor], sides: str = 'both'
) -> list[Slice]:
    """Returns the slices of a group that lie in matrices and kernels.

    Those of ``both`` sides, or of the ``producers`` alone.
    """
    if sides not in ('both', 'producers'):
        raise ValueError(
            f"sides must be 'both' or 'producers', found {sides!r}"
        )
    parts = group.slices if sides == 'both' else group.producers
    return [
        part
        for part in parts
        if part.tensor in tensors and tensors[part.tensor].ndim > 1
    ]


def matrix_names(
    groups: Iterable[PruneGroup], tensors: Mapping[str, Tensor]
) -> list[str]:
    """Returns the matrices of the groups, each once and in order."""
    parts = [part for group in groups for part in matrices(group, tensors)]
    return list(dict.fromkeys(part.tensor for part in parts))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns all parameters and buffers, shared ones under every name."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
