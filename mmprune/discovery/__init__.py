"""What goes together in any model: found by running it once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..groups import PruneGroup
from ..registry import FUNCTIONS
from . import indexing, maps, products  # noqa: F401
from .components import groups_of
from .labels import Labels, tensors_in
from .rules import Call, apply_rule


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
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Not eval(): that of some models freezes parameters anew.
        for module, _ in modes:
            module.training = False
        with torch.no_grad(), _Trace(labels):
            outputs = forward(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes:
            module.training = mode
    labels.fix_all(tensors_in(outputs), 'an output of the model')
    return list(groups_of(labels, model))
