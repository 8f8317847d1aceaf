"""What a model costs: parameters, multiply-adds, latency."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .groups import named_tensors

Forward = Callable[[nn.Module], Any]


def count_params(model: nn.Module) -> int:
    """Returns the number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def count_nonzero(model: nn.Module) -> int:
    """Returns the number of parameters that are not zero."""
    return sum(int(p.count_nonzero()) for p in model.parameters())


def count_macs(model: nn.Module, forward: Forward) -> dict[str, int]:
    """Returns the multiply-adds of one forward by module path.

    Convolutions and matrix products (also those of attention) count;
    elementwise work, norms and bilinear sampling do not. A module's number
    includes its children; the whole model's is under ``''``.

    Args:
        model: Any model, also one pruned before.
        forward: Runs the model once on the example that is to be counted.
    """
    # The fused inference path of nn.MultiheadAttention is one operator that
    # the counter does not know.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for param in trained:
            # The counter hooks whatever requires a gradient, and fails on
            # views of parameters.
            param.requires_grad_(False)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            forward(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for param in trained:
            param.requires_grad_(True)
    root = type(model).__name__
    counts = counter.get_flop_counts()
    macs = {'': sum(counts.get('Global', {}).values()) // 2}
    for path, ops in counts.items():
        if path.startswith(f'{root}.'):
            macs[path[len(root) + 1 :]] = sum(ops.values()) // 2
    return macs


@dataclass(frozen=True)
class CostTable:
    """What one element of each weight costs, to price a plan quickly.

    A plan's cost is the sum over tensors of (elements kept x cost of one
    element). For convolutions and linear layers this is exact; products
    between activations are charged to the projections that make them, which
    is exact when units are heads.

    Args:
        shapes: Name of each parameter and buffer -> shape when dense.
        params: Parameter name -> 1.
        macs: Parameter name -> multiply-adds per element.
    """

    shapes: dict[str, tuple[int, ...]]
    params: dict[str, float]
    macs: dict[str, float]

    def total(
        self, unit: str, index: dict[str, dict[int, Tensor]] | None = None
    ) -> float:
        """Returns the cost of a model that keeps ``index``.

        Args:
            unit: ``params`` or ``macs``.
            index: Tensor name -> dim -> kept positions; others stay whole.
        """
        total = 0.0
        for name, price in getattr(self, unit).items():
            elements = 1
            for dim, size in enumerate(self.shapes[name]):
                kept = (index or {}).get(name, {}).get(dim)
                elements *= size if kept is None else len(kept)
            total += price * elements
        return total


def cost_table(model: nn.Module, forward: Forward | None) -> CostTable:
    """Returns the table of the dense model.

    Args:
        model: The dense model.
        forward: Runs the model on an example; without it the multiply-adds
            are unknown and zero.
    """
    params = dict(model.named_parameters())
    table = CostTable(
        shapes={n: tuple(t.shape) for n, t in named_tensors(model).items()},
        params=dict.fromkeys(params, 1.0),
        macs=dict.fromkeys(params, 0.0),
    )
    if forward is not None:
        _charge(model, count_macs(model, forward), table.macs)
    return table


def _charge(
    model: nn.Module, macs: dict[str, int], prices: dict[str, float]
) -> None:
    """Spreads what each module does itself over its own matrices."""
    names = {id(p): n for n, p in model.named_parameters()}
    for path, total in macs.items():
        inside = f'{path}.' if path else ''
        children = {
            other
            for other in macs
            if other and other != path and other.startswith(inside)
        }
        direct = {
            c
            for c in children
            if not any(c.startswith(f'{o}.') for o in children)
        }
        own = total - sum(macs[c] for c in direct)
        if own <= 0:
            continue
        weights = _matrices(model.get_submodule(path))
        elements = sum(p.numel() for p in weights)
        for param in weights:
            prices[names[id(param)]] += own / elements


def _matrices(module: nn.Module) -> list[Tensor]:
    """The module's own matrices, or those of its children if it has none."""
    for recurse in (False, True):
        found = [p for p in module.parameters(recurse) if p.ndim > 1]
        if found:
            return found
    return []


def measure_latency(
    forward: Callable[[], Any], *, runs: int = 10, warmup: int = 2
) -> float:
    """Returns the median wall time of one call in milliseconds.

    Args:
        forward: Runs the model once; with CUDA the device is synchronised.
        runs: Calls that count.
        warmup: Calls before them that do not.
    """
    times = []
    with torch.no_grad():
        for number in range(warmup + runs):
            _synchronize()
            start = time.perf_counter()
            forward()
            _synchronize()
            if number >= warmup:
                times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
