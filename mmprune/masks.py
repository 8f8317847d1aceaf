"""Writes values into weights: zeroes, shrinks, pulls. Nobody else does."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .groups import PruneGroup, Slice, named_tensors, unit_sums
from .plan import PruningPlan

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Region:
    """Units or single weights of a tensor.

    Args:
        name: Name of the tensor.
        tensor: The tensor itself.
        inside: True where a weight belongs to the region. For single weights
            in the shape of the tensor; for units of size 1 in all dimensions
            but theirs, so that no mask is as large as the tensor.
        fill: What :meth:`clear` writes.
    """

    name: str
    tensor: Tensor
    inside: Tensor
    fill: float = 0.0

    def clear(self) -> None:
        """Writes the fill, in place."""
        if self.fill:
            self.tensor.data.masked_fill_(self.inside, self.fill)
        elif self._single:
            self.zero(self.tensor.data)
        else:
            # For columns twice as fast as masked_fill_, and this runs after
            # every step.
            self.tensor.data.mul_(self._kept)

    def zero(self, values: Tensor) -> None:
        """Zeroes the region in values of the tensor's shape, in place."""
        # Not a product: an overflown gradient under AMP times 0 is NaN.
        size = self.tensor.element_size()
        alike = values.element_size() == size and size in _INTEGERS
        if values.device.type == 'cpu' and alike:
            # A tenth of the time of a boolean mask, twice in every step.
            values.view(self._kept_bits.dtype).bitwise_and_(self._kept_bits)
        else:
            values.masked_fill_(self.inside, 0)

    def pull(self, strength: float) -> None:
        """Adds ``strength`` x weight to the gradient, in place."""
        if self.tensor.grad is not None:
            inside = self.inside.to(self.tensor.dtype)
            self.tensor.grad.addcmul_(
                self.tensor.detach(), inside, value=strength
            )

    def shrink(self, factor: float) -> None:
        """Multiplies the weights by ``factor``, in place."""
        factors = torch.ones_like(self.inside, dtype=self.tensor.dtype)
        self.tensor.data.mul_(factors.masked_fill_(self.inside, factor))

    def mask(self) -> Tensor:
        """Returns the region as a mask in the tensor's shape."""
        return self.inside.expand_as(self.tensor)

    @cached_property
    def _single(self) -> bool:
        # Kept, for comparing shapes takes a twentieth of clearing.
        return self.inside.shape == self.tensor.shape

    @cached_property
    def _kept(self) -> Tensor:
        return (~self.inside).to(self.tensor.dtype)

    @cached_property
    def _kept_bits(self) -> Tensor:
        """All bits of what is outside the region and none of the rest."""
        # As wide as the values: PyTorch would widen a copy in every step.
        return self.inside.to(_INTEGERS[self.tensor.element_size()]).sub_(1)


def unit_regions(
    model: nn.Module,
    groups: Iterable[PruneGroup],
    units: Mapping[str, Sequence[int] | Tensor],
    consumers_only: bool = False,
) -> list[Region]:
    """Returns where the given units lie in a model.

    Args:
        model: The dense model.
        groups: Its groups.
        units: Group name -> indices of units; a group that is absent or has
            none is passed over.
        consumers_only: Leave out what writes the units.

    Raises:
        ValueError: If a group names a tensor that the model lacks.
    """
    tensors = named_tensors(model)
    regions = []
    for group in groups:
        chosen = units.get(group.name, ())
        if not len(chosen):
            continue
        sides = [(part, part.fill) for part in group.consumers]
        if not consumers_only:
            sides += [(part, 0.0) for part in group.producers]
        for part, fill in sides:
            tensor = tensors.get(part.tensor)
            if tensor is None:
                raise ValueError(
                    f'group {group.name!r}: the model has no tensor '
                    f'{part.tensor!r}; the groups belong to another model'
                )
            inside = torch.zeros(tensor.shape[part.dim], dtype=torch.bool)
            inside[part.index(chosen, group.size)] = True
            inside = _along(tensor, part.dim, inside)
            regions.append(Region(part.tensor, tensor, inside, fill))
    return regions


def weight_regions(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    fills: Mapping[str, float] | None = None,
) -> list[Region]:
    """Returns where the given weights lie in a model.

    Args:
        model: Any model.
        masks: Tensor name -> boolean mask of its shape, true = keep.
        fills: Tensor name -> what takes the place of zero.

    Raises:
        ValueError: If a mask names no tensor of the model, or one of another
            shape.
    """
    tensors = named_tensors(model)
    regions = []
    for name, mask in masks.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ValueError(f'a mask names {name!r}, the model has no such')
        if tensor.shape != mask.shape:
            raise ValueError(
                f'the mask of {name!r} has shape {tuple(mask.shape)}, the '
                f'tensor {tuple(tensor.shape)}; it is of another model'
            )
        inside = ~mask.to(tensor.device)
        fill = (fills or {}).get(name, 0.0)
        regions.append(Region(name, tensor, inside, fill))
    return regions


@torch.no_grad()
def clear(regions: Iterable[Region]) -> None:
    """Writes zeros (or the fill) into all regions, in place."""
    for region in regions:
        region.clear()


def rewrite(tensor: Tensor, values: Tensor) -> None:
    """Writes reconstructed values in the place of a weight's, in place."""
    tensor.data.copy_(values)


def norm(regions: Iterable[Region]) -> float:
    """Returns the norm of all weights in the regions together."""
    found = (r.tensor.detach()[r.mask()].double() for r in regions)
    return sum(values.square().sum().item() for values in found) ** 0.5


def mask_plan(model: nn.Module, plan: PruningPlan) -> None:
    """Makes a dense model compute what the pruned one computes, in place.

    The consumers of every removed unit take their ``fill``, so nothing is
    assumed about what lies between producer and consumer.

    Raises:
        ValueError: If a tensor of the plan is missing.
    """
    units = {group.name: plan.removed(group) for group in plan.groups}
    clear(unit_regions(model, plan.groups, units, consumers_only=True))


def keep_masks(regions: Iterable[Region]) -> dict[str, Tensor]:
    """Returns tensor name -> mask of what lies outside all its regions.

    Raises:
        ValueError: If two regions fill one tensor differently.
    """
    masks: dict[str, Tensor] = {}
    fills: dict[str, float] = {}
    for region in regions:
        name = region.name
        if fills.setdefault(name, region.fill) != region.fill:
            raise ValueError(
                f'two groups fill {name!r}, with {fills[name]:g} and with '
                f'{region.fill:g}; protect one of them'
            )
        keep = ~region.mask()
        masks[name] = masks[name] & keep if name in masks else keep
    return masks


def read_zeros(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Returns where the named weights are not zero, as boolean masks.

    To be read once, when a run starts from a pruned checkpoint: later a
    surviving weight may become exactly zero and must not be frozen by that.
    """
    tensors = named_tensors(model)
    return {name: tensors[name].detach() != 0 for name in names}


@torch.no_grad()
def unit_norms(
    tensors: Mapping[str, Tensor], parts: Iterable[Slice], size: int
) -> Tensor:
    """Returns the Euclidean norm of all weights of each unit, ``[size]``."""
    squares = [
        unit_sums(tensors[part.tensor].detach().float().square(), part, size)
        for part in parts
    ]
    return torch.stack(squares).sum(0).sqrt()


@torch.no_grad()
def scale_units(
    tensors: Mapping[str, Tensor],
    parts: Iterable[Slice],
    size: int,
    factors: Tensor,
) -> None:
    """Multiplies all weights of each unit by its factor, in place."""
    for part in parts:
        tensor = tensors[part.tensor]
        scale = torch.ones(tensor.shape[part.dim], device=tensor.device)
        index = part.index(range(size), size).to(tensor.device)
        scale[index] = (
            factors.to(tensor.device, scale.dtype)
            .view(1, size, 1)
            .expand(part.copies, size, part.block)
            .flatten()
        )
        tensor.mul_(_along(tensor, part.dim, scale).to(tensor.dtype))


def _along(tensor: Tensor, dim: int, values: Tensor) -> Tensor:
    """Values for one dimension of a tensor, broadcast over the others."""
    shape = [1] * tensor.ndim
    shape[dim] = -1
    return values.view(shape).to(tensor.device)
