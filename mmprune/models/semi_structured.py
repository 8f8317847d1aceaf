"""2:4 weights in the layout that the tensor cores of a GPU skip zeros in."""

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import time_in_turns

# What the kernels take: rows and columns in whole tiles.
_TILE = 64
_TYPES = (torch.float16, torch.bfloat16)


def runs_semi_structured(device: torch.device | str) -> bool:
    """Whether a device multiplies 2:4 matrices in hardware (sm80 and on)."""
    device = torch.device(device)
    if device.type != 'cuda' or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def semi_structured_layers(model: nn.Module) -> list[str]:
    """Returns the linear layers whose weights are 2:4 and fit the kernels."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and _fits(module.weight)
    ]


@torch.no_grad()
def to_semi_structured(
    model: nn.Module, tokens: int = 1, always: bool = False
) -> dict[str, float]:
    """Puts 2:4 weights into torch's semi-structured layout, in place.

    For inference alone, under ``torch.no_grad``. Weights keep their values
    and shapes; they take 9/16 of the memory.

    Args:
        model: On a CUDA device of compute capability 8.0 or later, in half
            precision.
        tokens: How many are multiplied at a time; layers that are not
            faster so stay dense.
        always: Whether not to time and change all that fit.

    Returns:
        Path of each changed layer -> its time in the place of 1; NaN if it
        was not taken.

    Raises:
        ValueError: If the device cannot, or no layer is 2:4.
    """
    device = next(model.parameters()).device
    if not runs_semi_structured(device):
        raise ValueError(
            'semi-structured matrices need a CUDA device of compute '
            f'capability 8.0 or later, and the model is on {device}; leave '
            'them dense'
        )
    paths = semi_structured_layers(model)
    if not paths:
        raise ValueError(
            'no linear layer of the model is 2:4 in half precision with '
            f'widths that {_TILE} divides; prune it with pattern 2:4'
        )
    changed = {}
    times: dict[tuple, float] = {}
    for path in paths:
        layer = model.get_submodule(path)
        weight = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        kind = (*layer.weight.shape, layer.weight.dtype)
        if not always and kind not in times:
            times[kind] = _compare(layer.weight, weight, tokens)
        if always or times[kind] < 1:
            layer.weight = nn.Parameter(weight, requires_grad=False)
            changed[path] = times.get(kind, float('nan'))
    return changed


def _fits(weight: Tensor) -> bool:
    if weight.dtype not in _TYPES or any(n % _TILE for n in weight.shape):
        return False
    zeros = (weight.detach() == 0).view(-1, 4).sum(1)
    return bool((zeros >= 2).all())


def _compare(dense: Tensor, sparse: Tensor, tokens: int) -> float:
    """Returns the median time of the sparse product over the dense one."""
    inputs = torch.randn(
        tokens, dense.shape[1], device=dense.device, dtype=dense.dtype
    )

    def product(weight: Tensor) -> Callable[[], None]:
        def run() -> None:
            for _ in range(10):
                F.linear(inputs, weight)
            torch.cuda.synchronize()

        return run

    times = time_in_turns(
        dict(dense=product(dense), sparse=product(sparse)), runs=20, warmup=3
    )
    return statistics.median(times['sparse']) / statistics.median(
        times['dense']
    )
