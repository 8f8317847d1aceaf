"""What goes together in any model: found by running it once."""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
)

from ..compat.visible import visible_ops
from ..groups import PruneGroup
from ..registry import FUNCTIONS
from . import indexing, maps, products  # noqa: F401
from .components import groups_of
from .labels import Labels, tensors_in, varying
from .rules import Call, apply_rule
from .stored import StoredSizes


class _Trace(TorchDispatchMode):
    """Labels every tensor that is computed while it is on."""

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self.labels = labels

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        apply_rule(Call(self.labels, func, args, kwargs, out))
        return out


class _Sizes(TorchFunctionMode):
    """Sees what asks for the size of another tensor, or is told one.

    What PyTorch executes for ``expand_as`` has nothing but numbers, and
    ``chunk`` and ``split`` are the same to it.
    """

    def __init__(self, labels: Labels, stored: StoredSizes) -> None:
        super().__init__()
        self.labels, self.stored = labels, stored

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.stored.note(func, out, args, kwargs or {})
        if func is Tensor.expand_as:
            with _disable_current_modes():
                for mine, other in product(*map(self.labels.of, args)):
                    if varying(mine) & varying(other):
                        self.labels.tie(mine, other)
        return out


@FUNCTIONS.register_module()
def discovered_groups(
    model: nn.Module, forward: Callable[[nn.Module], Any]
) -> list[PruneGroup]:
    """Returns the groups of coupled units of any model.

    The model runs once, and every operation is seen as PyTorch executes it,
    whatever Python did to call it. Channels that the outputs show, and those
    that go through an operation nothing is known of, come with a ``dense``
    reason.

    Args:
        model: The model; it runs in eval mode and is left as it is.
        forward: Runs it on an example and returns its outputs; small inputs
            do, only the coupling is read.
    """
    labels = Labels(model)
    stored = StoredSizes(labels, model)
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Not eval(): that of some models freezes parameters anew.
        for module, _ in modes:
            module.training = False
        with (
            torch.no_grad(),
            visible_ops(),
            _Sizes(labels, stored),
            _Trace(labels),
        ):
            outputs = forward(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes:
            module.training = mode
        stored.remove_hooks()
    labels.fix_all(tensors_in(outputs), 'an output of the model')
    return list(groups_of(labels, model))
