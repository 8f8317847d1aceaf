"""Zeroes weights block by block, each on what the blocks before it give."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import BlockInputs, catch_inputs, find_blocks
from ..calibration import LossFn
from ..checks import check_choice
from ..groups import named_tensors
from ..importance.magnitude import Magnitude
from ..importance.wanda import Wanda
from ..inputs import AllSeen, InputSums, watched_layers
from ..layers import input_dim
from ..masks import clear, rewrite, weight_regions
from ..plan import PruningPlan
from ..registry import TASK_UTILS
from ..statistics import Statistics
from .admm import ADMM
from .outliers import OutlierRatios
from .sparsegpt import SparseGPT
from .stores import MemoryStore
from .weights import WeightPruner, prunable_weights


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class LayerwisePruner:
    """Prunes the blocks of a model one behind the other.

    The inputs of the first block are caught once. Of each block the inputs
    of all layers are summed up while it is still dense, its weights are
    pruned, and it is run again: what it then gives are the inputs of the
    next. In memory, and on the device, is one block at a time.

    Weights outside the blocks, as embeddings and head, stay dense.

    Args:
        sparsity: Fraction to zero, in ``[0, 1)``; left out with a pattern.
        importance: A criterion that scores single weights, or its config;
            ``None`` where ``reconstruct`` chooses them.
        scope: ``row``: the weights of one output compete, and each row loses
            the same number; or ``layer``: those of a layer.
        pattern: As in :class:`mmprune.pruners.WeightPruner`.
        protect: Regular expressions; weights whose name matches stay dense.
        reconstruct: How surviving weights make up for the lost ones:
            ``dict(type='mmprune.SparseGPT')``, which can choose them too, or
            ``dict(type='mmprune.ADMM')``.
        ratios: How the sparsity differs between blocks, as
            ``dict(type='mmprune.OutlierRatios')``; by default it does not.
        device: Where a block is pruned.
    """

    sparsity: float | None = None
    importance: Any = field(default_factory=Wanda)
    scope: str = 'row'
    pattern: str | None = None
    protect: Sequence[str] = ()
    reconstruct: SparseGPT | ADMM | dict | None = None
    ratios: OutlierRatios | dict | None = None
    device: str = 'cpu'

    def __post_init__(self) -> None:
        check_choice('scope', self.scope, ('row', 'layer'))
        for name in ('importance', 'reconstruct', 'ratios'):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, TASK_UTILS.build(dict(value)))
        if self.importance is None and self.reconstruct is None:
            raise ValueError('give `importance`, `reconstruct` or both')
        if self.importance is None and isinstance(self.reconstruct, ADMM):
            raise ValueError(
                'ADMM does not choose weights; give `importance`, as '
                "dict(type='mmprune.Wanda')"
            )
        # Checks what it is made of.
        chooser = WeightPruner(
            self.sparsity,
            importance=self.importance or Magnitude(),
            pattern=self.pattern,
        )
        object.__setattr__(self, 'sparsity', chooser.sparsity)
        if self.ratios is not None and self.pattern is not None:
            raise ValueError(
                f'pattern {self.pattern} removes the same fraction of every '
                'block, and `ratios` asks for different ones; leave one out'
            )

    @property
    def needs(self) -> set[str]:
        """The statistics of inputs that are gathered."""
        parts = (self.importance, self.reconstruct, self.ratios)
        return {need for part in parts if part for need in part.needs}

    def __call__(
        self,
        model: nn.Module,
        batches: Iterable[Any] = (),
        loss_fn: LossFn | None = None,
        store: Any = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> PruningPlan:
        """Zeroes the weights in place and returns the plan that says so.

        Args:
            model: A model with blocks, in eval mode.
            batches: Calibration data.
            loss_fn: Runs the model on a batch.
            store: Where the blocks are, by default in the model; with one
                that keeps finished blocks, a killed pass goes on behind them.
            progress: Called with a line about each block.

        Raises:
            ValueError: If the model has no blocks, or nothing can be pruned.
        """
        blocks = find_blocks(model)
        names = self._names(model, blocks)
        store = store or MemoryStore(model, blocks, self.device)
        carried = BlockInputs()
        if self.needs:
            store.open(0)
            device = store.device
            carried = catch_inputs(model, blocks, batches, loss_fn, device)
            store.close(0)
        rows = store.finished({**self.describe(), 'data': carried.digest()})
        sparsities = self._sparsities(store, names, carried, rows)
        for number, path in enumerate(blocks):
            block = store.open(number)
            last = number == len(blocks) - 1
            if number < len(rows):
                carried.carry(block, number, store.device)
                store.close(number)
                continue
            started = time.perf_counter()
            at = _At(block, number, names[number], sparsities[number], last)
            row = self._prune(at, carried, store.device)
            row['seconds'] = time.perf_counter() - started
            if not rows and self.ratios is not None:
                row['sparsities'] = sparsities  # for a pass that goes on
            rows.append(dict(block=path, **row))
            store.close(number, rows[-1])
            progress(f'{path}: {row["sparsity"]:.2%} zero')
        return self._plan(blocks, names, rows, len(carried.hidden))

    def describe(self) -> dict:
        """Returns the options as plain data, for people to read."""
        return dict(
            sparsity=self.sparsity,
            importance=repr(self.importance),
            scope=self.scope,
            pattern=self.pattern,
            protect=list(self.protect),
            reconstruct=repr(self.reconstruct),
            ratios=repr(self.ratios),
        )

    def _chooser(self, sparsity: float | None = None) -> WeightPruner:
        """What chooses the weights of one block."""
        importance = self.importance or Magnitude()
        if self.pattern is None and sparsity is None:
            sparsity = self.sparsity
        return WeightPruner(
            None if self.pattern else sparsity,
            importance=importance,
            scope=self.scope,
            pattern=self.pattern,
            tail='inputs',
        )

    def _names(self, model: nn.Module, blocks: list[str]) -> list[list[str]]:
        """The weights of each block that are pruned, named from there."""
        found = prunable_weights(model, self.protect)
        found = self._chooser().prunable(model, found)
        names = [
            [n.removeprefix(f'{p}.') for n in found if n.startswith(f'{p}.')]
            for p in blocks
        ]
        if not any(names):
            raise ValueError(
                'nothing can be pruned: `protect` matches every layer of the '
                f'{len(blocks)} blocks, or no pattern fits them'
            )
        return names

    def _sparsities(
        self,
        store: Any,
        names: list[list[str]],
        carried: BlockInputs,
        rows: list[dict],
    ) -> list[float]:
        """The sparsity of each block."""
        if self.ratios is None:
            return [self.sparsity] * len(names)
        if rows:  # of a pass that goes on
            return rows[0]['sparsities']
        dense = BlockInputs(list(carried.hidden), carried.calls)
        outliers, sizes = [], []
        for number, wanted in enumerate(names):
            block = store.open(number)
            stats, _ = _statistics(block, number, wanted, dense, store.device)
            outliers.append(self.ratios.outliers(wanted, stats))
            sizes.append(sum(stats.tensors[n].numel() for n in wanted))
            dense.carry(block, number, store.device)
            store.close(number)
        return self.ratios.sparsities(outliers, sizes, self.sparsity)

    def _prune(self, at: '_At', carried: BlockInputs, device: Any) -> dict:
        """Prunes a block and carries its inputs on; returns what came out."""
        stats, expected = _statistics(
            at.block, at.number, at.names, carried, device, self.needs
        )
        for name in at.names:
            self._prune_weight(at, name, stats)
        del stats
        carried.carry(at.block, at.number, device, 1 if at.last else None)
        layers = _layers(at.block, at.names)
        zeros = sum(layer['zeros'] for layer in layers.values())
        total = sum(math.prod(layer['shape']) for layer in layers.values())
        return dict(
            sparsity=zeros / max(total, 1),
            asked=at.sparsity,
            error=_relative(carried.hidden, expected),
            layers=layers,
        )

    def _prune_weight(self, at: '_At', name: str, stats: Statistics) -> None:
        """Prunes a weight; one at a time, so that one is scored at a time."""
        keep = {}
        if self.importance is not None:
            chooser = self._chooser(at.sparsity)
            keep = chooser.masks(at.block, names=[name], stats=stats)
        if self.reconstruct is None:
            clear(weight_regions(at.block, keep))
            return
        weight = stats.tensors[name]
        pruned = ~keep[name] if name in keep else None
        turned = input_dim(stats.kinds[name.rpartition('.')[0]]) == 0
        if turned:
            weight = weight.T
            pruned = None if pruned is None else pruned.T
        values = self.reconstruct.solve(
            weight, stats.hessian[name], at.sparsity, self.pattern, pruned
        )
        rewrite(stats.tensors[name], values.T if turned else values)

    def _plan(
        self,
        blocks: list[str],
        names: list[list[str]],
        rows: list[dict],
        batches: int,
    ) -> PruningPlan:
        sparse = [
            f'{path}.{name}'
            for path, wanted in zip(blocks, names, strict=True)
            for name in wanted
        ]
        return PruningPlan(
            groups=(),
            keep={},
            sparse=dict.fromkeys(sparse, self.pattern or 'unstructured'),
            provenance=dict(
                **self.describe(), calibration_batches=batches, blocks=rows
            ),
        )


@dataclass(frozen=True)
class _At:
    """A block whose turn it is."""

    block: nn.Module
    number: int
    names: list[str]
    sparsity: float
    last: bool


@torch.no_grad()
def _statistics(
    block: nn.Module,
    number: int,
    names: Sequence[str],
    carried: BlockInputs,
    device: Any,
    needs: Iterable[str] = ('inputs',),
) -> tuple[Statistics, Tensor | None]:
    """What the layers of a block read, and what it gives for batch 0."""
    stats = Statistics(
        tensors={n: t.detach() for n, t in named_tensors(block).items()},
        kinds={path: type(m) for path, m in block.named_modules()},
    )
    if not carried.hidden or not names:
        return stats, None
    layers = watched_layers(block, names)
    sums = InputSums(layers, products='hessian' in needs, stop=True)
    with sums.watching():
        expected = carried.outputs(block, number, 0, device)
        sums.next_batch()
        for batch in range(1, len(carried.hidden)):
            # What the last layers give is nobody's input here.
            with contextlib.suppress(AllSeen):
                carried.outputs(block, number, batch, device)
    stats.inputs, stats.hessian = sums.means(carried.windows)
    return stats, expected


def _relative(hidden: list[Tensor], expected: Tensor | None) -> float | None:
    """How far the output for batch 0 is from the dense block's."""
    if expected is None:
        return None
    error = (hidden[0] - expected).float().norm()
    return float(error / expected.float().norm().clamp_min(1e-30))


def _layers(block: nn.Module, names: Iterable[str]) -> dict[str, dict]:
    """Returns shape and zeros of each weight."""
    tensors = named_tensors(block)
    return {
        name: dict(
            shape=list(tensors[name].shape),
            zeros=tensors[name].numel() - int(tensors[name].count_nonzero()),
        )
        for name in names
    }
