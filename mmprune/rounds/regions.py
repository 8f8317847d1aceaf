"""Parts of tensors that are held at zero or pulled towards it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..groups import PruneGroup, named_tensors


@dataclass(frozen=True, eq=False)
class UnitRegion:
    """Positions of units along one dimension of a tensor.

    Args:
        tensor: The parameter itself.
        dim: The dimension that holds the units.
        index: Positions ``[n]``, on the tensor's device.
        fill: What :meth:`clear` writes.
    """

    tensor: Tensor
    dim: int
    index: Tensor
    fill: float = 0.0

    def clear(self) -> None:
        """Writes ``fill``, in place."""
        data = self.tensor.data
        if self.fill:
            data.index_fill_(self.dim, self.index, self.fill)
            return
        # For columns several times as fast as index_fill_, and this runs
        # after every step.
        keep = data.new_ones(data.shape[self.dim])
        keep.index_fill_(0, self.index, 0)
        shape = [1] * data.ndim
        shape[self.dim] = -1
        data.mul_(keep.view(shape))

    def pull(self, strength: float) -> None:
        """Adds ``strength`` x weight to the gradient, in place."""
        if self.tensor.grad is not None:
            self.tensor.grad.index_add_(
                self.dim, self.index, self._values(), alpha=strength
            )

    def shrink(self, factor: float) -> None:
        """Multiplies the weights by ``factor``, in place."""
        self.tensor.data.index_copy_(
            self.dim, self.index, self._values() * factor
        )

    def square_norm(self) -> float:
        """Returns the sum of squares."""
        return self._values().double().square().sum().item()

    def _values(self) -> Tensor:
        return self.tensor.detach().index_select(self.dim, self.index)


@dataclass(frozen=True, eq=False)
class WeightRegion:
    """Single weights of a tensor.

    Args:
        tensor: The parameter itself.
        mask: True where a weight belongs to the region, in its shape.
    """

    tensor: Tensor
    mask: Tensor

    def clear(self) -> None:
        """Writes zeros, in place."""
        self.tensor.data.masked_fill_(self.mask, 0)

    def pull(self, strength: float) -> None:
        """Adds ``strength`` x weight to the gradient, in place."""
        if self.tensor.grad is not None:
            self.tensor.grad.addcmul_(
                self.tensor.detach(),
                self.mask.to(self.tensor.dtype),
                value=strength,
            )

    def shrink(self, factor: float) -> None:
        """Multiplies the weights by ``factor``, in place."""
        self.tensor.data[self.mask] *= factor

    def square_norm(self) -> float:
        """Returns the sum of squares."""
        return self.tensor.detach()[self.mask].double().square().sum().item()


Region = UnitRegion | WeightRegion


def unit_regions(
    model: nn.Module,
    groups: Iterable[PruneGroup],
    units: dict[str, list[int]],
    consumers_only: bool = False,
) -> list[UnitRegion]:
    """Returns where the given units lie in a model.

    Args:
        model: The dense model.
        groups: Its groups.
        units: Group name -> units; groups that are absent have none.
        consumers_only: Leave out what writes the units. Once both sides are
            zero, zero consumers are enough: no gradient passes them.
    """
    tensors = named_tensors(model)
    regions = []
    for group in groups:
        chosen = units.get(group.name)
        if not chosen:
            continue
        sides = [(part, part.fill) for part in group.consumers]
        if not consumers_only:
            sides += [(part, 0.0) for part in group.producers]
        for part, fill in sides:
            tensor = tensors[part.tensor]
            index = part.index(chosen, group.size).to(tensor.device)
            regions.append(UnitRegion(tensor, part.dim, index, fill))
    return regions


def norm(regions: Iterable[Region]) -> float:
    """Returns the norm of all weights in the regions together."""
    return sum(region.square_norm() for region in regions) ** 0.5


@torch.no_grad()
def clear(regions: Iterable[Region]) -> None:
    """Writes zeros (or the fill) into all regions, in place."""
    for region in regions:
        region.clear()
