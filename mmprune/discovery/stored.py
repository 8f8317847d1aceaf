"""Numbers of channels that modules store, which surgery has to change."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from .labels import Labels, compact, varies


class StoredSizes:
    """Finds attributes that count channels, while a model runs.

    They are the width of an output that no weight gives, the size of the
    parts into which a module splits its channels, and the shape in which it
    views them.

    Args:
        labels: Learns the attributes, as ``counts`` and ``views``.
        model: The model; it gets hooks until :meth:`remove_hooks`.
    """

    def __init__(self, labels: Labels, model: nn.Module) -> None:
        self.labels = labels
        self._running: list[tuple[str, nn.Module]] = []
        # Paths of modules that make the tensor that they write into.
        self._makers: set[str] = set()
        self._hooks = []
        for path, module in model.named_modules():
            enter = partial(self._enter, path)
            self._hooks += [
                module.register_forward_pre_hook(enter),
                # Also where it raises what its parent catches.
                module.register_forward_hook(self._leave, always_call=True),
            ]

    def remove_hooks(self) -> None:
        """Takes the hooks out of the model."""
        for hook in self._hooks:
            hook.remove()

    def note(self, func: Any, out: Any, args: tuple, kwargs: dict) -> None:
        """Takes a function that the model called, and what it returned."""
        look = _LOOKS.get(func)
        if look is not None and self._running:
            with _disable_current_modes():
                look(self, out, *args, **kwargs)

    def _split(
        self,
        parts: tuple[Tensor, ...],
        tensor: Tensor,
        split_size_or_sections: Any = None,
        dim: int = 0,
        split_size: Any = None,
    ) -> None:
        """A size, as Res2Net's; not ``chunk``, which gives a number."""
        size = split_size or split_size_or_sections
        for name in self._names(size):
            for layer in self.labels.of(parts[0]):
                if varies(layer, dim):
                    self.labels.counts[name] = _lines(layer, dim).amax(1)

    def _view(self, out: Tensor, *args: Any, **kwargs: Any) -> None:
        """A shape with numbers in it, as SCNet's relay of features."""
        shape = kwargs['shape'] if 'shape' in kwargs else args[1:]
        if len(shape) == 1 and isinstance(shape[0], tuple | list):
            shape = shape[0]
        for dim, size in enumerate(shape):
            for name in self._names(size):
                for layer in self.labels.of(out):
                    if varies(layer, dim):
                        lines = _lines(layer, dim)
                        self.labels.views.append((name, lines))

    def _make(self, *_: Any, **__: Any) -> None:
        """A tensor to write into, as the RoI extractors of GRoIE do."""
        self._makers.add(self._running[-1][0])

    def _names(self, size: Any) -> Iterator[str]:
        """Which attribute of the module that runs is a size, if one is."""
        if not isinstance(size, int) or size < 2:
            return
        path, module = self._running[-1]
        names = [
            name
            for name, value in vars(module).items()
            if isinstance(value, int) and value == size
        ]
        if len(names) == 1:
            yield f'{path}.{names[0]}'

    def _enter(self, path: str, module: nn.Module, _: Any) -> None:
        self._running.append((path, module))

    def _leave(self, module: nn.Module, _: Any, out: Any) -> None:
        path, _ = self._running.pop()
        name = _stored_width(module, path in self._makers)
        if not name or not isinstance(out, Tensor) or out.ndim < 2:
            return
        with _disable_current_modes():
            for layer in self.labels.of(out):
                if varies(layer, 1) and out.shape[1] == getattr(module, name):
                    # Rows that nothing was written to have no labels.
                    atoms = _lines(layer, 1).amax(1)
                    self.labels.counts[f'{path}.{name}'] = atoms


_LOOKS: dict[Any, Callable] = {
    torch.split: StoredSizes._split,
    Tensor.split: StoredSizes._split,
    Tensor.view: StoredSizes._view,
    Tensor.reshape: StoredSizes._view,
    torch.reshape: StoredSizes._view,
    torch.zeros: StoredSizes._make,
    Tensor.new_zeros: StoredSizes._make,
}


def _lines(layer: Tensor, dim: int) -> Tensor:
    """Labels ``[positions along dim, all others]``, without repetitions."""
    layer = compact(layer, leave=dim % layer.ndim)
    return layer.movedim(dim, 0).flatten(1)


def _stored_width(module: nn.Module, maker: bool) -> str:
    """What a module calls the width of its output that no weight gives it.

    As mmdet's RoI extractors, and mmcv's deformable RoI pooling do; surgery
    has to tell them the new width. Empty for any other module.
    """
    stored = vars(module)
    if isinstance(stored.get('out_channels'), int):
        given = list(module.parameters()) and not maker
        return '' if given else 'out_channels'
    own = list(module.parameters(recurse=False))
    if isinstance(stored.get('output_channels'), int) and not own:
        return 'output_channels'
    return ''
