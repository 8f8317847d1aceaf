"""How long each layer of a model takes on this device, by its sizes."""

import json
import platform
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..atomic_file import save_json
from ..cost import time_in_turns
from ..errors import blame
from ..groups import PruneGroup

# Milliseconds under which timed calls are too few to believe.
_SHORT = 10
_PLAIN = (int, float, str, tuple)


class LayerTimes:
    """A table of measured layers: what one is and reads -> milliseconds.

    A layer is measured where it is met: in a run of its model, on the tensors
    that it is given there, with the sizes that it has.

    Args:
        path: A JSON file that holds the table between runs; it is written
            whole, and holds other devices, threads and versions beside.
        runs: Timed calls of a layer; their median counts.

    Raises:
        ValueError: If the file holds something else.
    """

    def __init__(self, path: str | Path, runs: int = 5) -> None:
        self.path, self.runs = Path(path), runs
        self.measured = 0
        self._known: dict[str, dict[str, float]] = {}
        if self.path.is_file():
            with blame(f'{path} is not a table of layer times'):
                self._known = json.loads(self.path.read_text())
                for table in self._known.values():
                    statistics.fsum(table.values())

    def total(
        self,
        model: nn.Module,
        forward: Callable[[nn.Module], Any],
        groups: Iterable[PruneGroup] = (),
    ) -> float:
        """Returns the time of all layers of one run of a model.

        Layers that the table lacks are measured, and written to it.

        Args:
            model: Any model, pruned or not, in eval mode.
            forward: Runs it.
            groups: Its groups. A module of which they change a setting, as
                an attention's number of heads, counts as one layer.
        """
        where = next(model.parameters()).device
        table = self._known.setdefault(environment(where), {})
        spent, before = 0.0, len(table)

        def meet(layer: nn.Module, args: tuple, kwargs: dict) -> None:
            nonlocal spent
            key = _describe(layer, args, kwargs)
            if key not in table:
                table[key] = self._measure(layer, args, kwargs)
            spent += table[key]

        hooks = [
            layer.register_forward_pre_hook(meet, with_kwargs=True)
            for layer in _layers(model, groups)
        ]
        try:
            with torch.no_grad():
                forward(model)
        finally:
            for hook in hooks:
                hook.remove()
        self.measured += len(table) - before
        if len(table) > before:
            save_json(self._known, self.path)
        return spent

    def _measure(self, layer: nn.Module, args: tuple, kwargs: dict) -> float:
        # Some work in place; what the model computes with stays.
        args, kwargs = tree_map(_copied, (args, kwargs))
        call = {'': lambda: layer.forward(*args, **kwargs)}
        times = time_in_turns(call, runs=self.runs)['']
        if sum(times) < _SHORT:
            times += time_in_turns(call, runs=5 * self.runs)['']
        return statistics.median(times)


def environment(device: torch.device) -> str:
    """Returns where a time holds: device, threads and version of PyTorch."""
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    else:
        name = f'{_processor()}, {torch.get_num_threads()} threads'
    return f'{name}, PyTorch {torch.__version__}'


def _processor() -> str:
    info = Path('/proc/cpuinfo')
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith('model name'):
            return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def _layers(model: nn.Module, groups: Iterable[PruneGroup]) -> list[nn.Module]:
    """Modules without children, and whole ones that a group sets up anew."""
    whole = {a.rpartition('.')[0] for g in groups for a in g.attrs}
    found = {}
    for path, module in model.named_modules():
        parts = path.split('.')
        outer = ('.'.join(parts[:n]) for n in range(1, len(parts)))
        if any(name in whole for name in outer):
            continue
        if path in whole or next(module.children(), None) is None:
            found[id(module)] = module
    return list(found.values())


def _describe(layer: nn.Module, args: tuple, kwargs: dict) -> str:
    sizes = [tuple(p.shape) for p in layer.parameters()]
    settings = {
        name: value
        for name, value in vars(layer).items()
        if isinstance(value, _PLAIN) and name[0] != '_' and name != 'training'
    }
    read = [
        f'{str(t.dtype)[6:]}{list(t.shape)}' for t in _tensors((args, kwargs))
    ]
    return f'{type(layer).__name__} {sizes} {settings} <- {" ".join(read)}'


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda x: found.append(x) if isinstance(x, Tensor) else x, values)
    return found


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
