"""Building a model without the start values that a checkpoint overwrites.

Random numbers for all weights take longer than reading them from a file, and
a dense weight that is never written to takes no memory: the system hands out
its pages when they are touched. So a model that is built only to be loaded
leaves its parameters unfilled, and surgery hands out smaller ones without
reading the larger.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What fills a tensor with random numbers, and what turns them into others of
# another distribution. Those of `nn.init` that ask for overriding come as
# themselves, the others as the methods that they call.
_RANDOM = {
    *(
        getattr(Tensor, name)
        for name in (
            *('uniform_', 'normal_', 'log_normal_', 'exponential_'),
            *('cauchy_', 'random_', 'bernoulli_', 'geometric_'),
        )
    ),
    *(nn.init.uniform_, nn.init.normal_),
    *(nn.init.kaiming_uniform_, nn.init.kaiming_normal_),
}
_SHAPING = {
    getattr(Tensor, name)
    for name in ('erfinv_', 'clamp_', 'mul_', 'add_', 'sub_', 'div_')
}


class _Unfilled(TorchFunctionMode):
    """Notes the parameters that it keeps from being filled at random."""

    def __init__(self) -> None:
        super().__init__()
        # The tensors themselves: ids alone could come again.
        self.tensors: dict[int, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM:
            filled = args[0] if args else kwargs['tensor']
            if isinstance(filled, nn.Parameter):
                self.tensors[id(filled)] = filled
                return filled
        elif func in _SHAPING and id(args[0]) in self.tensors:
            return args[0]
        return func(*args, **kwargs)


_active: list[_Unfilled] = []


@contextmanager
def unfilled() -> Iterator[None]:
    """Leaves out the random start of every parameter that is made within.

    Whoever uses this loads all of them afterwards; :func:`all_in_state` says
    whether a strict load does. Constants (ones, zeros, buffers) are filled.
    """
    mode = _Unfilled()
    _active.append(mode)
    try:
        with mode:
            yield
    finally:
        _active.pop()


def is_unfilled(tensor: Tensor) -> bool:
    """Whether the values of a tensor mean nothing."""
    return any(id(tensor) in mode.tensors for mode in _active)


@contextmanager
def noting_nothing() -> Iterator[None]:
    """Spares code that fills nothing the look at each of its operations."""
    with torch._C.DisableTorchFunction():
        yield


def all_in_state(model: nn.Module) -> bool:
    """Whether the state dict of a model has each of its parameters.

    Those of a module that is kept out of it count too, as the teacher of a
    detector that mmdet distils.
    """
    held = {id(t) for t in model.state_dict(keep_vars=True).values()}
    return all(
        id(parameter) in held
        for module in _with_hidden(model)
        for parameter in module.parameters(recurse=False)
    )


def _with_hidden(model: nn.Module) -> Iterator[nn.Module]:
    """All modules, also those that are plain attributes of another."""
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        for module in waiting.pop().modules():
            if id(module) not in seen:
                seen.add(id(module))
                yield module
                waiting += [
                    value
                    for value in vars(module).values()
                    if isinstance(value, nn.Module)
                ]


def empty_like_slice(tensor: Tensor, kept: dict[int, Tensor]) -> Tensor:
    """Returns an unfilled tensor with so many positions per dimension."""
    size = list(tensor.shape)
    for dim, index in kept.items():
        size[dim] = len(index)
    return torch.empty(size, dtype=tensor.dtype, device=tensor.device)
