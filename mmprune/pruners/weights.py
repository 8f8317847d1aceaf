"""Zeroes single weights: unstructured and N:M sparsity."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..allocation import (
    lowest_overall,
    lowest_per_row,
    round_half_up,
)
from ..calibration import LossFn, calibrate
from ..checks import check_choice, check_sparsity, parse_pattern
from ..importance.magnitude import Magnitude
from ..layers import input_dim, is_layer
from ..masks import clear, weight_regions
from ..patterns import lowest_of_group
from ..plan import PruningPlan
from ..registry import TASK_UTILS
from ..statistics import Statistics

_SEEN = dict(grad='gradient', squared_grad='gradient', inputs='inputs')
_PACKED = ('in_proj_weight', 'q_proj_weight', 'k_proj_weight', 'v_proj_weight')


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class WeightPruner:
    """Zeroes the least important weights of convolutions and linear layers.

    Exactly ``round(sparsity * n)`` of the n weights that compete are zero
    afterwards, ties included. Han et al., "Learning both Weights and
    Connections for Efficient Neural Networks", NeurIPS 2015; N:M: Zhou et
    al., "Learning N:M Fine-grained Structured Sparse Neural Networks From
    Scratch", ICLR 2021.

    Args:
        sparsity: Fraction to zero, in ``[0, 1)``; left out with a pattern.
        importance: A criterion that scores single weights, or its config.
        scope: Where weights compete: ``global``, ``layer``, or ``row`` (the
            weights of one output).
        pattern: ``'2:4'`` keeps 2 of every 4 neighbouring weights along what
            a kernel reads: the input features of a linear layer, the input
            channels of a convolution. A layer whose number of inputs is no
            multiple stays dense, or its last few inputs, see ``tail``.
        protect: Regular expressions; weights whose name matches stay dense.
        tail: What stays dense where a pattern does not divide the inputs:
            the whole ``layer``, or the ``inputs`` that fill no group.
    """

    sparsity: float | None = None
    importance: Any = field(default_factory=Magnitude)
    scope: str = 'global'
    pattern: str | None = None
    protect: Sequence[str] = ()
    tail: str = 'layer'

    def __post_init__(self) -> None:
        if isinstance(self.importance, dict):
            criterion = TASK_UTILS.build(self.importance)
            object.__setattr__(self, 'importance', criterion)
        if not callable(getattr(self.importance, 'weights', None)):
            raise ValueError(
                f'{type(self.importance).__name__} scores whole units, not '
                'single weights; choose another criterion for them, such as '
                'Magnitude (l1, l2), Taylor or Random'
            )
        check_choice('scope', self.scope, ('global', 'layer', 'row'))
        check_choice('tail', self.tail, ('layer', 'inputs'))
        if self.pattern is not None:
            kept, size = parse_pattern(self.pattern)
            implied = 1 - kept / size
            if self.sparsity not in (None, implied):
                raise ValueError(
                    f'pattern {self.pattern} removes {implied:g} of the '
                    f'weights, and sparsity={self.sparsity:g} was asked for; '
                    'leave one of them out'
                )
            object.__setattr__(self, 'sparsity', implied)
        if self.sparsity is None:
            raise ValueError('give a sparsity or a pattern such as 2:4')
        check_sparsity(self.sparsity)

    def __call__(
        self,
        model: nn.Module,
        batches: Iterable[Any] = (),
        loss_fn: LossFn | None = None,
        stats: Statistics | None = None,
    ) -> PruningPlan:
        """Zeroes the weights in place and returns the plan that says so.

        Args:
            model: Any model.
            batches: Calibration data, for criteria that need it.
            loss_fn: Loss of the model on a batch, for the same.
            stats: What a training gathered, in place of calibration.

        Raises:
            ValueError: If no weight is left to prune.
        """
        if stats is None:
            stats = self.calibrate(model, batches, loss_fn)
        masks = self.masks(model, stats=stats)
        clear(weight_regions(model, masks))
        return self.plan(masks, stats.num_batches)

    def plan(
        self, names: Iterable[str], calibration_batches: int = 0
    ) -> PruningPlan:
        """Returns the plan that calls the named tensors sparse."""
        return PruningPlan(
            groups=(),
            keep={},
            sparse=dict.fromkeys(names, self.pattern or 'unstructured'),
            provenance=dict(
                sparsity=self.sparsity,
                importance=repr(self.importance),
                scope=self.scope,
                pattern=self.pattern,
                protect=list(self.protect),
                calibration_batches=calibration_batches,
            ),
        )

    def prunable(self, model: nn.Module, names: Iterable[str]) -> list[str]:
        """Returns those of the named tensors that it can prune."""
        weights = self._weights(model)
        return [name for name in names if name in weights]

    def choose(
        self,
        model: nn.Module,
        pruned: Mapping[str, Tensor],
        stats: Statistics,
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns what is pruned after one more event, and how it came."""
        before = {name: ~mask for name, mask in pruned.items()}
        masks = self.masks(model, before, list(pruned), stats)
        chosen = {
            name: ~masks[name].cpu() if name in masks else mask
            for name, mask in pruned.items()
        }
        return chosen, self.plan(()).provenance

    def check(self, model: nn.Module) -> None:
        """Raises ``ValueError`` if no weight is left to prune."""
        self._weights(model)

    def calibrate(
        self,
        model: nn.Module,
        batches: Iterable[Any] = (),
        loss_fn: LossFn | None = None,
    ) -> Statistics:
        """Returns the statistics that the criterion needs."""
        names = list(prunable_weights(model, self.protect))
        return calibrate(
            model, (), self.importance.needs, batches, loss_fn, weights=names
        )

    def masks(
        self,
        model: nn.Module,
        before: Mapping[str, Tensor] | None = None,
        names: Collection[str] | None = None,
        stats: Statistics | None = None,
    ) -> dict[str, Tensor]:
        """Returns which weights stay; the model is left as it is.

        Args:
            model: Any model.
            before: Earlier masks, true = keep; what they dropped goes first
                and never comes back.
            names: Tensors to prune; by default all that can be.
            stats: What the criterion reads; needed unless that is only the
                weights.

        Raises:
            ValueError: If no weight is left to prune.
        """
        weights = self._weights(model, names)
        if stats is None:
            stats = calibrate(model, (), self.importance.needs)
        _check_seen(weights, self.importance.needs, stats)
        scores = {
            name: self.importance.weights(name, stats).float()
            for name in weights
        }
        before = before or {}
        for name in scores.keys() & before.keys():
            dropped = ~before[name].to(scores[name].device)
            scores[name] = scores[name].masked_fill(dropped, -1)
        masks = self._masks(model, scores)
        for name in masks.keys() & before.keys():
            masks[name] &= before[name].to(masks[name].device)
        return masks

    def _weights(
        self, model: nn.Module, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """The weights that can be pruned, of the named tensors if given."""
        weights = prunable_weights(model, self.protect)
        if names is not None:
            weights = {n: weights[n] for n in names if n in weights}
        if self.pattern is not None:
            _, size = parse_pattern(self.pattern)
            weights = {
                name: weight
                for name, weight in weights.items()
                if self._fits(weight.shape[_input_dim(model, name)], size)
            }
        if not weights:
            raise ValueError(
                'nothing can be pruned: the model has no unprotected '
                'convolution or linear layer'
                + (f' that {self.pattern} divides' if self.pattern else '')
            )
        return weights

    def _fits(self, inputs: int, size: int) -> bool:
        whole = inputs % size == 0
        return whole if self.tail == 'layer' else inputs >= size

    def _masks(
        self, model: nn.Module, scores: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if self.pattern is None and self.scope == 'global':
            removed = lowest_overall(scores, self.sparsity)
        else:
            removed = {
                name: self._lowest(score, _input_dim(model, name))
                for name, score in scores.items()
            }
        return {name: ~mask for name, mask in removed.items()}

    def _lowest(self, score: Tensor, input_dim: int) -> Tensor:
        """What is removed of one tensor alone, in the same shape."""
        if self.pattern is None and self.scope == 'layer':
            return lowest_overall({'': score}, self.sparsity)['']
        if self.pattern is None:
            rows = score.movedim(1 - input_dim, 0)
            flat = rows.reshape(len(rows), -1)
            count = round_half_up(self.sparsity * flat.shape[1])
            mask = lowest_per_row(flat, count).view(rows.shape)
            return mask.movedim(0, 1 - input_dim)
        kept, size = parse_pattern(self.pattern)
        inputs = score.movedim(input_dim, -1)
        flat = inputs.reshape(-1, inputs.shape[-1])
        whole = flat.shape[1] // size * size
        mask = lowest_of_group(flat[:, :whole], size - kept, size)
        if whole < flat.shape[1]:
            mask = nn.functional.pad(mask, (0, flat.shape[1] - whole))
        return mask.view(inputs.shape).movedim(-1, input_dim)


def prunable_weights(
    model: nn.Module, protect: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Returns the kernels and matrices of the model, shared ones once."""
    found, seen = {}, set()
    for path, module in model.named_modules():
        leaves = ()
        if is_layer(module):
            leaves = ('weight',)
        elif isinstance(module, nn.MultiheadAttention):
            leaves = _PACKED
        for leaf in leaves:
            name = f'{path}.{leaf}' if path else leaf
            weight = getattr(module, leaf)
            kept = any(re.search(pattern, name) for pattern in protect)
            if weight is not None and id(weight) not in seen and not kept:
                seen.add(id(weight))
                found[name] = weight.detach()
    return found


def narrow_weights(model: nn.Module, least: int) -> list[str]:
    """Returns the kernels and matrices of fewer inputs or outputs."""
    weights = prunable_weights(model)
    return [
        n for n, weight in weights.items() if min(weight.shape[:2]) < least
    ]


def _input_dim(model: nn.Module, name: str) -> int:
    return input_dim(type(model.get_submodule(name.rpartition('.')[0])))


def _check_seen(
    weights: Mapping[str, Tensor], needs: set[str], stats: Statistics
) -> None:
    """Refuses weights of which the statistics say nothing."""
    for need, what in _SEEN.items():
        found = getattr(stats, need)
        missing = [name for name in weights if name not in found]
        if need in needs and missing:
            raise ValueError(
                f'{len(missing)} weights got no {what}, first '
                f'{missing[0]!r}; protect them, or choose a criterion '
                f'that asks for none'
            )
