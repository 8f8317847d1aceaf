"""What goes together in any model: found by running it once."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
)

from ..groups import PruneGroup
from ..registry import FUNCTIONS
from . import indexing, maps, products  # noqa: F401
from .components import groups_of
from .labels import Labels, compact, tensors_in, varies
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
    hooks = [
        module.register_forward_hook(partial(_note_width, labels, path))
        for path, module in model.named_modules()
        if _stores_width(module)
    ]
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
        for hook in hooks:
            hook.remove()
    labels.fix_all(tensors_in(outputs), 'an output of the model')
    return list(groups_of(labels, model))


def _stores_width(module: nn.Module) -> bool:
    """Whether a module writes tensors of a width that no weight gives it.

    As mmdet's RoI extractors do; surgery has to tell them the new width.
    """
    stored = vars(module).get('out_channels')
    return isinstance(stored, int) and not list(module.parameters())


def _note_width(
    labels: Labels, path: str, module: nn.Module, _: Any, out: Any
) -> None:
    if not isinstance(out, Tensor) or out.ndim < 2:
        return
    with _disable_current_modes():
        for layer in labels.of(out):
            if varies(layer, 1) and out.shape[1] == module.out_channels:
                # Rows that nothing was written to have no labels.
                atoms = compact(layer, leave=1).transpose(0, 1)
                atoms = atoms.flatten(1).amax(1)
                labels.counts[f'{path}.out_channels'] = atoms
