"""Builds models without the random values that a checkpoint replaces."""

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What `torch.nn.init` and its kin do to a parameter, in place.
_FILLS = {
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.kaiming_uniform_,
    Tensor.uniform_,
    Tensor.normal_,
    Tensor.erfinv_,
    Tensor.mul_,
    Tensor.add_,
    Tensor.clamp_,
}


class Unfilled(TorchFunctionMode):
    """While it lasts, parameters are not initialised: their values are what
    lay in memory.

    Drawing 86 million numbers takes longer than reading them. Buffers are
    computed as ever, and constants are filled in.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS:
            filled = args[0] if args else kwargs.get('tensor')
            if isinstance(filled, nn.Parameter):
                return filled
        return func(*args, **kwargs)
