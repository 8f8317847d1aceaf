"""Gradients of the served ops, by running them again with autograd."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def write_gradients(
    run: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    buffers: Sequence[Tensor | None],
    grad_output: Tensor,
) -> None:
    """Writes the gradients of ``run(*inputs)`` into what is no ``None``."""
    with torch.enable_grad():
        inputs = [
            None if t is None else t.detach().requires_grad_(b is not None)
            for t, b in zip(inputs, buffers, strict=True)
        ]
        output = run(*inputs)
        wanted = [t for t in inputs if t is not None and t.requires_grad]
        grads = torch.autograd.grad(
            output, wanted, grad_output.to(output.dtype)
        )
    written = [buffer for buffer in buffers if buffer is not None]
    for buffer, grad in zip(written, grads, strict=True):
        buffer.copy_(grad)
