"""Gathers what the layers of a model read, while the model runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .layers import input_dim, is_layer


class AllSeen(BaseException):  # nothing went wrong: nobody may explain it
    """Every layer that is watched has been run."""


class InputSums:
    """Sums over all tokens of the inputs of layers.

    Layers that are called with the very same tensor, as query, key and value,
    share one sum. Inputs are taken in float32, or in float64 where they are.

    Args:
        layers: Name of a weight -> its layer.
        products: Whether to sum the products of all pairs of inputs, not
            only the squares.
        stop: Whether to raise :class:`AllSeen` as soon as the layer that
            comes last has been seen, known from the second batch on.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        products: bool = False,
        stop: bool = False,
    ) -> None:
        self.layers, self.products, self.stop = layers, products, stop
        self.sums: dict[str, Tensor] = {}
        self.leader: dict[str, str] = {}
        self._last: tuple[Tensor, str] | None = None
        self._order: list[str] = []
        self._known = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sums up whatever the layers are called with while it lasts."""
        handles = [
            layer.register_forward_pre_hook(self._hook(name))
            for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._last = None

    def next_batch(self) -> None:
        """Says that the first batch is through: who shares is known."""
        self._known = bool(self._order)
        self._last = None

    def means(
        self, windows: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the means over windows, by weight.

        First of the squares, in a shape that multiplies the weight, then of
        twice the products ``[in, in]``; layers that share inputs have the
        same tensor.

        Raises:
            ValueError: If a layer was never run, or an input not finite.
        """
        squares: dict[str, Tensor] = {}
        products: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            if name not in self.leader:
                raise ValueError(
                    f'{name} was never used on the calibration data, so '
                    'nothing is known of its inputs; protect it'
                )
            total = self.sums[self.leader[name]]
            if not total.isfinite().all():
                raise ValueError(
                    f'an input of {name} is not finite; check the weights '
                    'and the calibration data'
                )
            if self.products:
                leader = self.leader[name]
                if leader not in products:
                    products[leader] = total * (2 / windows)
                products[name] = products[leader]
                total = total.diagonal()
            squares[name] = _along_weight(total / windows, layer)
        return squares, products

    def _hook(self, name: str) -> Any:
        def look(_: nn.Module, args: tuple) -> None:
            if not self._known:
                self._lead(name, args[0])
            if self.leader[name] == name:
                self._add(name, args[0].detach())
            if self._known and self.stop and name == self._order[-1]:
                raise AllSeen

        return look

    def _lead(self, name: str, given: Tensor) -> None:
        """Notes whose sum a layer shares: that of who read it just now."""
        if name in self.leader:
            return
        shared = self._last is not None and self._last[0] is given
        self.leader[name] = self._last[1] if shared else name
        self._last = (given, self.leader[name])
        self._order.append(name)

    def _add(self, name: str, given: Tensor) -> None:
        found = _rows(given, self.layers[name])
        if found.dtype != torch.float64:
            found = found.float()
        total = self.sums.get(name)
        if not self.products:
            found = found.square().sum(0)
            self.sums[name] = found if total is None else total + found
        elif total is None:
            self.sums[name] = found.T @ found
        else:
            total.addmm_(found.T, found)


def _rows(given: Tensor, layer: nn.Module) -> Tensor:
    """The inputs of a layer ``[places, inputs]``."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        given = given.movedim(1, -1)
    return given.reshape(-1, given.shape[-1])


def _along_weight(values: Tensor, layer: nn.Module) -> Tensor:
    """One value per input, in a shape that multiplies the weight."""
    weight, dim = layer.weight, input_dim(type(layer))
    groups = getattr(layer, 'groups', 1)
    if groups > 1 and dim == 1:
        # A row reads the inputs of its own group only.
        rows = values.view(groups, -1)
        values = rows.repeat_interleave(len(weight) // groups, 0)
        return values.view(*values.shape, *[1] * (weight.ndim - 2))
    shape = [1] * weight.ndim
    shape[dim] = -1
    return values.view(shape)


def watched_layers(model: nn.Module, names: Any) -> dict[str, nn.Module]:
    """Returns the layers of weights that can be watched, by weight."""
    found = {}
    for name in names:
        path, _, leaf = name.rpartition('.')
        layer = model.get_submodule(path)
        if leaf == 'weight' and is_layer(layer):
            found[name] = layer
    return found
