"""Runs a float32 model in float64, to tell rounding from a fault."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Forward = Callable[[nn.Module], Any]


def in_float64(
    model: nn.Module, forward: Forward
) -> tuple[nn.Module, Forward]:
    """Returns a copy of a model, and its forward, that compute in float64.

    Weights are float64; what modules and operations are given is widened on
    the way, so that a model's own casts and constants do not stop it. What
    is written in place keeps its type.
    """
    model = copy.deepcopy(model).double()
    for module in model.modules():
        module.register_forward_pre_hook(_widen_inputs, with_kwargs=True)

    def run(model: nn.Module) -> Any:
        with _Float64():
            return forward(model)

    return model, run


def _widen_inputs(_: nn.Module, args: tuple, kwargs: dict) -> tuple:
    return _cast((args, kwargs), torch.float64)


class _Float64(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # A write into a view of a copy would be lost, and copy.deepcopy puts
        # the storage of one tensor into an empty one of its type.
        if func.is_view or func is torch.ops.aten.new_empty.default:
            return func(*args, **kwargs)
        if not func._schema.is_mutable:
            args, kwargs = _cast((args, kwargs), torch.float64)
        elif isinstance(args[0], Tensor) and args[0].is_floating_point():
            args, kwargs = _cast((args, kwargs), args[0].dtype)
        return func(*args, **kwargs)


def _cast(tree: tuple, dtype: torch.dtype) -> tuple:
    def to(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return tree_map_only(Tensor, to, tree)
