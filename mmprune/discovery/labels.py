"""Which channel each element of a tensor belongs to.

Every position along every dimension of every parameter and buffer is an
*atom*, a positive integer. While a model runs, each activation carries
*layers* of labels: integer tensors of its own shape that hold the atom an
element depends on, 0 where there is none. A layer is expanded (stride 0) over
the dimensions along which it does not change, so that it costs next to
nothing, and what moves data moves labels by the very same call.

What computes with two labelled elements ties their atoms to each other. In
the end, tied atoms are what must be removed together.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from enum import Enum

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ..groups import named_tensors

Layers = tuple[Tensor, ...]
Move = Callable[[Tensor], Tensor]

# Beyond this many, an element depends on nearly everything.
_MOST_LAYERS = 6


class Labels:
    """The atoms of a model, the labels of its tensors, and what was learnt.

    Args:
        model: The model whose parameters and buffers have the atoms.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names: list[tuple[str, int]] = []  # tensor and dim of each row
        self.starts: list[int] = []  # first atom of each row
        self.ties: list[Tensor] = []  # [2, n] atoms that go together
        self.mixed: list[Tensor] = []  # atoms that are one unit of attention
        self.read: list[Tensor] = []  # positions that only read
        self.fixed: list[tuple[Tensor, str]] = []  # atoms that stay, and why
        # Module attributes that count something: path -> one atom of each.
        self.counts: dict[str, Tensor] = {}
        # The same of views, if each row of atoms turns out to be one unit.
        self.views: list[tuple[str, Tensor]] = []
        self._layers = WeakIdKeyDictionary()
        self._weights = WeakIdKeyDictionary()  # parameters and their views
        self._storage = WeakIdKeyDictionary()  # labels that can be written
        # Atoms a tensor was reduced from: they stay if it is used.
        self._reduced = WeakIdKeyDictionary()
        # Where a layer met one that changes along more dimensions: its atoms,
        # the ties if they are units, and those if they are none.
        self.broadcasts: list[tuple[Tensor, list[Tensor], list[Tensor]]] = []
        self.splits: list[Tensor] = []  # [rows, columns] of a split dimension
        total = 1
        seen = set()
        for name, tensor in named_tensors(model).items():
            if not tensor.is_floating_point() or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            layers = []
            for dim, size in enumerate(tensor.shape):
                if size < 2:
                    continue
                self.names.append((name, dim))
                self.starts.append(total)
                shape = [1] * tensor.ndim
                shape[dim] = size
                atoms = torch.arange(total, total + size).view(shape)
                layers.append(atoms.expand(tensor.shape))
                total += size
            self._layers[tensor] = tuple(layers)
            self._weights[tensor] = name
        self.total = total

    def of(self, tensor: object) -> Layers:
        """Returns the layers of a tensor, none for what has no elements."""
        if not isinstance(tensor, Tensor) or not tensor.numel():
            return ()
        return self._layers.get(tensor, ())

    def set(self, tensor: Tensor, layers: Iterable[Tensor]) -> None:
        """Gives a tensor its layers; constant ones hold their atoms fixed."""
        kept = []
        for layer in layers:
            layer = layer.expand(tensor.shape)
            if varying(layer):
                kept.append(layer)
            else:
                self.fix(layer, 'a single position of the channels is read')
        for layer in kept[_MOST_LAYERS:]:
            self.fix(layer, 'too many kinds of channels meet in one tensor')
        store = self._storage.get(tensor)
        if store is not None:
            self._write(store, kept)
        else:
            self._layers[tensor] = tuple(kept[:_MOST_LAYERS])

    def make_writable(self, tensor: Tensor) -> None:
        """Says that views of a new tensor may be written."""
        self._storage[tensor] = None

    def is_writable(self, tensor: Tensor) -> bool:
        """Returns whether views of a tensor write into its labels."""
        return tensor in self._storage

    def share_storage(self, view: Tensor, tensor: Tensor, move: Move) -> None:
        """Makes a view of a writable tensor write into its labels.

        Args:
            view: A view of ``tensor``.
            tensor: A writable tensor; its labels get memory now.
            move: Takes the same view of labels.
        """
        store = self._storage[tensor]
        if store is None:
            store = torch.zeros(tensor.shape, dtype=torch.long)
            self._write(store, self.of(tensor))
            self._storage[tensor] = store
            self._layers[tensor] = (store,)
        self._storage[view] = move(store)
        self._layers[view] = (self._storage[view],)

    def weight(self, tensor: object) -> str:
        """Returns the parameter that a tensor is a view of, or ''."""
        if not isinstance(tensor, Tensor):
            return ''
        return self._weights.get(tensor, '')

    def pass_weight(self, view: Tensor, tensor: Tensor) -> None:
        """Says that a tensor is a moved copy of a parameter."""
        if tensor in self._weights:
            self._weights[view] = self._weights[tensor]

    def tie(self, a: Tensor, b: Tensor) -> Tensor:
        """Ties atoms elementwise; returns the labels of the result.

        Args:
            a: Labels.
            b: Labels of a shape that broadcasts with ``a``.
        """
        a, b = compact(a), compact(b)
        self.ties += self._pairs(a, b)
        return torch.where(a != 0, a, b)

    def _pairs(self, a: Tensor, b: Tensor) -> list[Tensor]:
        both = (a != 0) & (b != 0) & (a != b)
        if not both.any():
            return []
        a_all, b_all = torch.broadcast_tensors(a, b)
        # One number for a pair: unique columns take ten times as long.
        pairs = torch.unique(a_all[both] * self.total + b_all[both])
        return [torch.stack([pairs // self.total, pairs % self.total])]

    def tie_along(self, layer: Tensor, dim: int) -> Tensor:
        """Ties all atoms along a dimension; returns it with size 1 there."""
        first = layer.narrow(dim, 0, 1)
        self.tie(first, layer)
        return first

    def fix(self, layer: Tensor, why: str) -> None:
        """Says that the atoms in a layer cannot be removed, and why."""
        atoms = torch.unique(compact(layer))
        atoms = atoms[atoms != 0]
        if len(atoms):
            self.fixed.append((atoms, why))

    def fix_all(self, tensors: Iterable[object], why: str) -> None:
        """The same for all labels of some tensors."""
        for tensor in tensors:
            for layer in self.of(tensor):
                self.fix(layer, why)
            if isinstance(tensor, Tensor):
                self.use([tensor])

    def reduce(self, layer: Tensor, dims: Iterable[int]) -> Tensor:
        """Ties what is reduced over dimensions; they get size 1.

        Nothing is tied if no channels are left in the result: whether they
        have to stay depends on its use.
        """
        short = layer
        for dim in dims:
            short = short.narrow(dim, 0, 1)
        if varying(short):
            self.tie(short, layer)
        return short

    def note_reduced(self, tensor: Tensor, layer: Tensor, why: str) -> None:
        """Says that a tensor has lost channels which it depends on."""
        self._reduced.setdefault(tensor, []).append((layer, why))

    def pass_reduced(
        self, inputs: Iterable[Tensor], results: Iterable[Tensor]
    ) -> None:
        """Says the same of results, whose use is not known yet either."""
        notes = [n for t in inputs for n in self._reduced.pop(t, ())]
        for result in results if notes else ():
            self._reduced.setdefault(result, []).extend(notes)

    def use(self, tensors: Iterable[Tensor]) -> None:
        """Holds the channels that tensors were reduced from."""
        for tensor in tensors:
            for layer, why in self._reduced.pop(tensor, ()):
                self.fix(layer, why)

    def split_into(self, layer: Tensor, shape: torch.Size) -> None:
        """Notes where a view splits one dimension of channels into two."""
        old, new = list(layer.shape), list(shape)
        while old and new and old[0] == new[0]:
            old, new = old[1:], new[1:]
            layer = layer.select(0, 0)
        while old and new and old[-1] == new[-1]:
            old, new = old[:-1], new[:-1]
            layer = layer.select(-1, 0)
        if len(old) == 1 and len(new) == 2 and min(new) > 1:
            self.splits.append(layer.reshape(new))

    def reads(self, layer: Tensor) -> None:
        """Says that the positions in a layer of a weight are inputs."""
        self.read.append(torch.unique(compact(layer)))

    def mixes(self, layer: Tensor) -> None:
        """Says that the atoms in a layer belong to heads."""
        self.mixed.append(torch.unique(compact(layer)))

    def merge(self, operands: Sequence[Layers], shape: torch.Size) -> Layers:
        """Returns the layers of an elementwise result and ties what meets.

        Layers that change along a common dimension speak of the same
        channels; others are of different kinds and stand side by side. Where
        one changes along more dimensions than the other, what to tie is
        found in the end (:meth:`settle_broadcasts`).

        Args:
            operands: Layers of each operand, in shapes that broadcast.
            shape: Shape of the result.
        """
        merged: list[Tensor] = []
        for layer in itertools.chain.from_iterable(operands):
            layer = layer.expand(shape)
            dims = varying(layer)
            if not dims:
                self.fix(layer, 'a single position of the channels is read')
                continue
            rest = []
            for other in merged:
                others = varying(other)
                if dims < others:
                    layer = self._spread(layer, dims, other, others)
                    layer, dims = layer.expand(shape), others
                elif others < dims:
                    layer = self._spread(other, others, layer, dims)
                    layer = layer.expand(shape)
                elif dims & others:
                    layer = self.tie(other, layer).expand(shape)
                    dims = varying(layer)
                else:
                    rest.append(other)
            merged = [*rest, layer]
        return tuple(merged)

    def _spread(
        self, few: Tensor, few_dims: Set[int], many: Tensor, dims: Set[int]
    ) -> Tensor:
        """Notes that a layer meets one that changes along more dimensions;
        returns the labels of the result."""
        few, many = _along(few, few_dims), _along(many, dims)
        apart, rows = [], torch.where(few != 0, many, 0)
        for dim in few_dims:
            first = rows.amax(dim, keepdim=True)
            apart += self._pairs(first, rows)
            rows = first
        together = self._pairs(many, few)
        self.broadcasts.append((few[few != 0], together, apart))
        return torch.where(many != 0, many, few)

    def settle_broadcasts(self, stays: Callable[[Tensor], bool]) -> None:
        """Ties layers that met others which change along more dimensions.

        A scale of each head goes with the neurons of its head. But points
        that stay, to which each head adds offsets, are no reason for the
        heads to stay: a head has to lose its offsets from all of them.

        Args:
            stays: Whether all the atoms that it gets will stay.
        """
        for atoms, together, apart in self.broadcasts:
            self.ties += apart if stays(atoms) else together
        self.broadcasts.clear()

    def _write(self, store: Tensor, layers: Sequence[Tensor]) -> None:
        store[...] = layers[0] if layers else 0
        for layer in layers[1:]:
            self.fix(layer, 'two kinds of channels are written to one tensor')


def _along(layer: Tensor, dims: Set[int]) -> Tensor:
    """Returns labels with size 1 where they do not change."""
    for dim in range(layer.ndim):
        if dim not in dims and layer.shape[dim] > 1:
            layer = layer.narrow(dim, 0, 1)
    return layer


def varying(layer: Tensor) -> set[int]:
    """Returns the dimensions along which labels change."""
    return {dim for dim in range(layer.ndim) if varies(layer, dim)}


def varies(layer: Tensor, dim: int) -> bool:
    """Returns whether labels change along a dimension."""
    if layer.shape[dim] < 2 or layer.stride(dim) == 0:
        return False
    thin = compact(layer, leave=dim)
    return bool((thin != thin.narrow(dim, 0, 1)).any())


def compact(layer: Tensor, leave: int | None = None) -> Tensor:
    """Returns labels with size 1 where they are expanded."""
    for dim in range(layer.ndim):
        if dim != leave and layer.shape[dim] > 1 and layer.stride(dim) == 0:
            layer = layer.narrow(dim, 0, 1)
    return layer


def thinned(layer: Tensor) -> Tensor:
    """Returns labels expanded over all dimensions along which they agree."""
    shape = layer.shape
    layer = compact(layer)
    for dim in range(layer.ndim):
        if layer.shape[dim] > 1 and not varies(layer, dim):
            layer = layer.narrow(dim, 0, 1)
    return layer.expand(shape)


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yields the tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from tensors_in(part)
    elif hasattr(value, '__dict__') and not isinstance(
        value, nn.Module | type | Enum
    ):
        # Results of mmdet and of Hugging Face. mmdet sets their attributes in
        # the order of a set, which is another one in each process.
        for _, part in sorted(vars(value).items()):
            yield from tensors_in(part)
