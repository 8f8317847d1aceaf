"""Mixed precision that a CPU has, too."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from .registry import OPTIM_WRAPPERS

_DTYPES = ('bfloat16', 'float16')


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Runs the forward in half precision; weights and steps stay float32.

    mmengine's ``AmpOptimWrapper`` is for GPUs. This one has no loss scaling,
    which ``bfloat16`` does without.

    Args:
        dtype: ``bfloat16``, or ``float16``, which a CPU computes slowly.
        kwargs: As for ``OptimWrapper``.

    Raises:
        ValueError: If the dtype is another.
    """

    def __init__(self, dtype: str = 'bfloat16', **kwargs: Any) -> None:
        if dtype not in _DTYPES:
            raise ValueError(
                f'dtype is one of {", ".join(_DTYPES)}, found {dtype!r}'
            )
        super().__init__(**kwargs)
        self.dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Runs what is inside in half precision."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, self.dtype):
            yield
