"""What a model costs: parameters, multiply-adds, latency."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .compat.visible import visible_ops
from .cost_table import CostTable
from .groups import named_tensors

# Kernels of mmcv that multiply.
_CONVOLUTIONS = ('deform_conv_forward', 'modulated_deform_conv_forward')

Forward = Callable[[nn.Module], Any]


def count_params(model: nn.Module) -> int:
    """Returns the number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def count_nonzero(model: nn.Module) -> int:
    """Returns the number of parameters that are not zero."""
    return sum(int(p.count_nonzero()) for p in model.parameters())


def weights_mb(model: nn.Module) -> float:
    """Returns the size of a model's state dict in megabytes."""
    tensors = model.state_dict().values()
    return sum(t.numel() * t.element_size() for t in tensors) / 1e6


def cost_row(
    model: nn.Module, forward: Forward, macs: int | None = None
) -> dict[str, float]:
    """Returns what a report says of a model, but for its latency.

    Args:
        model: Any model.
        forward: Runs it once, to count its multiply-adds.
        macs: Their number where it is known; nothing is run then.
    """
    return dict(
        params=count_params(model),
        nonzero=count_nonzero(model),
        macs=count_macs(model, forward)[''] if macs is None else macs,
        checkpoint_mb=weights_mb(model),
    )


def cost_rows(
    models: Mapping[str, nn.Module],
    forward: Forward,
    latency_runs: int,
    macs: Mapping[str, int | None] = MappingProxyType({}),
) -> dict[str, dict[str, float | None]]:
    """Returns what a report says of several models, timed in turns.

    Multiply-adds that are known, by name, are not counted.
    """
    rows = {
        name: cost_row(model, forward, macs.get(name))
        for name, model in models.items()
    }
    latencies = measure_latencies(
        {name: partial(forward, model) for name, model in models.items()},
        latency_runs,
    )
    return {
        name: dict(row, latency_ms=latencies[name])
        for name, row in rows.items()
    }


def count_macs(model: nn.Module, forward: Forward) -> dict[str, int]:
    """Returns the multiply-adds of one forward by module path.

    Convolutions and matrix products (also those of attention) count;
    elementwise work, norms and bilinear sampling do not. A module's number
    includes its children; the whole model's is under ``''``.

    Args:
        model: Any model, also one pruned before.
        forward: Runs the model once on the example that is to be counted.
    """
    macs: Counter[str] = Counter({'': 0})
    for path, own in _own_macs(model, forward).items():
        parts = path.split('.') if path else []
        for depth in range(len(parts) + 1):
            macs['.'.join(parts[:depth])] += own
    return dict(macs)


def _own_macs(model: nn.Module, forward: Forward) -> Counter[str]:
    """Multiply-adds that each module does itself, not in its children."""
    stack, own = [''], Counter()
    hooks = []

    def leave(*_: Any) -> None:
        stack.pop()

    for path, module in model.named_modules():
        hooks += [
            module.register_forward_pre_hook(
                lambda *_, path=path: stack.append(path)
            ),
            module.register_forward_hook(leave),
        ]
    # The fused inference path of nn.MultiheadAttention is one operator that
    # has no formula.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        seen = visible_ops(_CONVOLUTIONS)
        with torch.no_grad(), seen, _MacCounter(stack, own):
            forward(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for hook in hooks:
            hook.remove()
    return own


class _MacCounter(TorchDispatchMode):
    """Adds the multiply-adds of every operator to the module that runs.

    PyTorch's ``FlopCounterMode`` adds them to all callers, so a branch that
    a decoder is given to call would count as the decoder's, and it does not
    know the CPU's attention kernel.
    """

    def __init__(self, stack: list[str], own: Counter[str]) -> None:
        super().__init__()
        self.stack = stack
        self.own = own

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = _FLOPS.get(func.overloadpacket)
        if str(func.overloadpacket) == 'torchvision.deform_conv2d':
            formula = _deform_conv_flops
        if formula is not None:
            flops = formula(*args, **(kwargs or {}), out_val=out)
            self.own[self.stack[-1]] += flops // 2
        return out


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_, **__):
    """Of ``[B, heads, L, width]``; keys may have fewer heads (GQA)."""
    width = query.shape[-1] + value.shape[-1]
    return 2 * query.shape[:-1].numel() * key.shape[-2] * width


def _deform_conv_flops(
    image: Tensor, weight: Tensor, *_: Any, out_val: Tensor, **__: Any
) -> int:
    """Of torchvision's operator, which may not be loaded here."""
    return 2 * out_val.numel() * weight[0].numel()


_FLOPS = {
    **flop_registry,
    **{
        getattr(torch.ops.aten, f'_scaled_dot_product_{kernel}'): (
            _attention_flops
        )
        for kernel in (
            'flash_attention_for_cpu',
            'flash_attention',
            'efficient_attention',
            'cudnn_attention',
        )
    },
}


def cost_table(model: nn.Module, forward: Forward | None) -> CostTable:
    """Returns the table of the dense model.

    Args:
        model: The dense model.
        forward: Runs the model on an example; without it the multiply-adds
            are unknown and zero.
    """
    params = dict(model.named_parameters())
    own = None if forward is None else _own_macs(model, forward)
    table = CostTable(
        shapes={n: tuple(t.shape) for n, t in named_tensors(model).items()},
        params=dict.fromkeys(params, 1.0),
        macs=dict.fromkeys(params, 0.0),
        counted=None if own is None else sum(own.values()),
    )
    _charge(model, own or Counter(), table.macs)
    return table


def _charge(
    model: nn.Module, own: Counter[str], prices: dict[str, float]
) -> None:
    """Spreads what each module does itself over its own matrices."""
    names = {id(p): n for n, p in model.named_parameters()}
    for path, macs in own.items():
        weights = _matrices(model.get_submodule(path))
        elements = sum(p.numel() for p in weights)
        for param in weights:
            prices[names[id(param)]] += macs / elements


def _matrices(module: nn.Module) -> list[Tensor]:
    """The module's own matrices, or those of its children if it has none."""
    for recurse in (False, True):
        found = [p for p in module.parameters(recurse) if p.ndim > 1]
        if found:
            return found
    return []


def time_in_turns(
    forwards: Mapping[str, Callable[[], Any]],
    *,
    runs: int = 10,
    warmup: int = 1,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Times several models in turns: a slow moment hits all of them.

    Args:
        forwards: Name -> runs that model, or a training step of it, once;
            with CUDA the device is synchronised.
        runs: Rounds that count; each runs every model once.
        warmup: Rounds before them that do not.
        tick: Called after each round, for a progress bar.

    Returns:
        Name -> wall time of each of the ``runs`` calls in milliseconds.
    """
    times = {name: [] for name in forwards}
    for number in range(warmup + runs):
        for name, forward in forwards.items():
            _synchronize()
            start = time.perf_counter()
            forward()
            _synchronize()
            if number >= warmup:
                times[name].append((time.perf_counter() - start) * 1000)
        tick()
    return times


def measure_latencies(
    forwards: Mapping[str, Callable[[], Any]], runs: int
) -> dict[str, float | None]:
    """Returns the median wall time of each model's forward in milliseconds.

    Gradients are off.
    """
    if not runs:
        return dict.fromkeys(forwards)
    with torch.no_grad():
        times = time_in_turns(forwards, runs=runs)
    return {name: statistics.median(each) for name, each in times.items()}


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
