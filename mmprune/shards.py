"""Tensors of which every rank holds a part, as FSDP2 leaves them."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .groups import named_tensors
from .masks import Region, weight_regions


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is split over the ranks."""
    # The import takes a second, and hardly any model needs it.
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """Returns what this rank holds of a tensor, in the same memory."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor


def split_like(whole: Tensor, like: Tensor) -> Tensor:
    """Returns a whole tensor on the device of another, split as that is.

    Nothing is sent: every rank has the whole tensor and takes its part.

    Args:
        whole: The same on every rank, in the shape of ``like``.
        like: Split over the ranks or not.
    """
    whole = whole.to(like.device)
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        whole, like.device_mesh, like.placements, src_data_rank=None
    )


def gathered(tensor: Tensor) -> Tensor:
    """Returns the whole tensor; all ranks have to call it together."""
    if not is_sharded(tensor):
        return tensor.detach()
    whole = tensor.detach()
    if whole.dtype != torch.bool:
        return whole.full_tensor()
    # Not every backend sends booleans.
    return whole.to(torch.uint8).full_tensor().bool()


def count_zeros(tensors: Iterable[Tensor]) -> tuple[int, int]:
    """Returns how many weights are zero, and of how many.

    Of sharded tensors those in the parts of this rank count.
    """
    zeros = total = 0
    for tensor in tensors:
        part = local(tensor.detach())
        zeros += part.numel() - int(part.count_nonzero())
        total += part.numel()
    return zeros, total


class ShardRegion(Region):
    """Single weights of what this rank holds of a tensor."""

    def clear(self) -> None:
        """Writes the fill into this rank's part, in place."""
        if self.fill:
            mine = local(self.tensor.data)
            Region(self.name, mine, self.inside, self.fill).clear()
        else:
            self.zero(self.tensor.data)

    def mask(self) -> Tensor:
        """Returns the region in this rank's part."""
        return self.inside

    def zero(self, values: Tensor) -> None:
        """Zeroes the region in this rank's part of values, in place."""
        super().zero(local(values))


def shard_regions(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    fills: Mapping[str, float] | None = None,
) -> list[Region]:
    """Returns where the given weights lie in a model, split or not.

    Args are those of :func:`mmprune.masks.weight_regions`.
    """
    tensors = named_tensors(model)
    found = weight_regions(model, masks, fills)
    return [
        ShardRegion(r.name, r.tensor, _part(r.inside, r.tensor), r.fill)
        if is_sharded(tensors[r.name])
        else r
        for r in found
    ]


def _part(whole: Tensor, like: Tensor) -> Tensor:
    return local(split_like(whole, like))
