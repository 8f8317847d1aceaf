"""Tensors of which every rank holds a part, as FSDP2 leaves them."""

import torch
from torch import Tensor, nn


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
