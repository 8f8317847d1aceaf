"""The precision in which the served ops compute."""

import torch
from torch import Tensor


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """Returns float64 for float64 and float32 for everything else.

    torchvision has no kernels for half precision on every device, and sums
    over many samples lose digits in it.
    """
    double = tensor.dtype == torch.float64
    return torch.float64 if double else torch.float32
