"""Checks that a pruned model computes what the masked one does."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..groups import PruneGroup
from ..masks import mask_plan
from ..plan import PruningPlan
from ..surgery import apply_plan
from .float64 import Forward, in_float64
from .repeated_decisions import Decisions

# Largest difference between masked and pruned outputs, by the scale of each
# output, with which a pruned model is handed over. Float32 sums in another
# order differ by some 1e-5 in the deepest models measured.
TOLERANCE = 1e-4
# Larger ones are a fault; smaller ones may be the rounding of a model whose
# values cancel out, which float64 tells.
_MAY_BE_ROUNDING = 0.1


def masked_difference(
    model: nn.Module, plan: PruningPlan, forward: Forward
) -> float:
    """Returns the largest difference of any output to its own scale.

    Both the masked and the pruned model are copies; the model itself is left
    alone. If the outputs differ, they are computed once more with what top-k,
    NMS and thresholds picked in the masked run: rounding may turn a tie. If
    they still differ, but by little, both are computed in float64, where a
    fault stays and rounding goes.

    Args:
        model: The dense model, in evaluation mode.
        plan: Which units stay.
        forward: Runs a model and returns its outputs: tensors in any nesting
            of lists, tuples and dicts.

    Raises:
        Exception: What the pruned model raises if it does not run.
        ValueError: If the two return tensors of different shapes, values
            that are not finite, or no tensors at all.
    """
    difference = _difference(model, plan, forward)
    if TOLERANCE < difference < _MAY_BE_ROUNDING:
        # Not every operation of every model runs in float64.
        with suppress(RuntimeError, TypeError, ValueError):
            wide, run = in_float64(model, forward)
            difference = min(difference, _difference(wide, plan, run))
    return difference


def _difference(
    model: nn.Module, plan: PruningPlan, forward: Forward
) -> float:
    masked = copy.deepcopy(model)
    mask_plan(masked, plan)
    with torch.no_grad(), _full_float32(), Decisions() as decisions:
        expected = tensors_of(forward(masked))
    del masked
    pruned = copy.deepcopy(model)
    apply_plan(pruned, plan)
    with torch.no_grad(), _full_float32():
        try:
            difference = largest_difference(
                expected, tensors_of(forward(pruned))
            )
        except ValueError:
            if not decisions.made:
                raise
            difference = float('inf')
        if difference <= TOLERANCE or not decisions.made:
            return difference
        # A tie may have turned. Where masked and pruned models run different
        # operations, the decisions do not fit: the better of the two counts.
        with Decisions(decisions.made):
            found = tensors_of(forward(pruned))
    return min(difference, largest_difference(expected, found))


def largest_difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Returns the largest difference of any output to its own scale."""
    pairs = zip(expected, found, strict=True)
    return max(relative_difference(a, b) for a, b in pairs)


def refuse_difference(difference: float) -> None:
    """Raises ``ValueError`` if masked and pruned outputs are not the same."""
    if not difference <= TOLERANCE:
        raise ValueError(
            'the pruned model computes something else than the masked one '
            f'(outputs differ by {difference:.1e} of their scale) and was '
            'not written; protect parts of it, and report this, please'
        )


@contextmanager
def _full_float32() -> Iterator[None]:
    """Switches TF32 off, whose 10 bits of precision would hide a fault."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = False
    try:
        yield
    finally:
        for setting, allowed in zip(settings, before, strict=True):
            setting.allow_tf32 = allowed


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """Returns the largest absolute difference by the largest magnitude."""
    if expected.shape != found.shape:
        raise ValueError(
            f'shapes differ: {tuple(expected.shape)} masked, '
            f'{tuple(found.shape)} pruned'
        )
    if not expected.numel():
        return 0.0
    if not (expected.isfinite().all() and found.isfinite().all()):
        raise ValueError('an output is not finite; check the weights for NaN')
    scale = expected.abs().max().clamp_min(1e-12)
    return ((expected - found).abs().max() / scale).item()


def tensors_of(outputs: Any) -> list[Tensor]:
    """Returns the floating point tensors in nested outputs, in order.

    Raises:
        ValueError: If there are none, so that nothing could be compared.
    """
    found = _tensors_of(outputs)
    if not found:
        raise ValueError(
            f'the forward returned {type(outputs).__name__} without a '
            'floating point tensor in it; return tensors, lists or dicts'
        )
    return found


def _tensors_of(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if isinstance(outputs, Mapping):
        return [t for v in outputs.values() for t in _tensors_of(v)]
    if isinstance(outputs, Sequence) and not isinstance(outputs, str):
        return [t for v in outputs for t in _tensors_of(v)]
    return []


def check_groups(
    model: nn.Module,
    groups: Sequence[PruneGroup],
    forward: Forward,
    tolerance: float = TOLERANCE,
) -> list[PruneGroup]:
    """Returns the groups; those that do not hold get a ``dense`` reason.

    All groups are tried together; where that fails, each half by itself.

    Args:
        model: The dense model, in evaluation mode.
        groups: What an adapter yielded.
        forward: Runs a model on a small example and returns its outputs.
        tolerance: Largest difference, relative to the scale of an output.
    """
    open_groups = [g for g in groups if not g.dense and g.size > 1]
    faults = _faults(model, open_groups, forward, tolerance)
    return [
        dataclasses.replace(g, dense=faults[g.name]) if g.name in faults else g
        for g in groups
    ]


def _faults(
    model: nn.Module,
    groups: list[PruneGroup],
    forward: Forward,
    tolerance: float,
) -> dict[str, str]:
    """Returns why groups do not hold, by name."""
    fault = _fault(model, groups, forward, tolerance) if groups else ''
    if not fault:
        return {}
    if len(groups) == 1:
        return {groups[0].name: fault}
    half = len(groups) // 2
    faults = {
        **_faults(model, groups[:half], forward, tolerance),
        **_faults(model, groups[half:], forward, tolerance),
    }
    if not faults:
        # Each half holds: two groups of different halves do not go together.
        faults = {g.name: fault for g in groups[half:]}
    return faults


def _fault(
    model: nn.Module,
    groups: list[PruneGroup],
    forward: Forward,
    tolerance: float,
) -> str:
    keep = {g.name: list(range(0, g.size, 2)) for g in groups}
    plan = PruningPlan(tuple(groups), keep)
    try:
        difference = masked_difference(model, plan, forward)
    except Exception as error:
        # A model's own code may fail in any way on shapes it did not expect.
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        return f'the model does not run without its units: {reason}'
    if difference > tolerance:
        return (
            'removing its units is not the same as masking them (outputs '
            f'differ by {difference:.1e} of their scale)'
        )
    return ''
