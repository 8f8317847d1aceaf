"""Importance from what the units put out."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..checks import check_choice
from ..groups import PruneGroup, unit_sums
from ..registry import TASK_UTILS
from ..statistics import COLLECTORS, Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class Activation:
    """Mean size of the outputs that make a unit, on calibration data.

    Looked at are the layers that write the unit, before any activation
    function; several of them (query, key and value of a head) are averaged.

    Args:
        p: 1 for the mean absolute value, 2 for the root mean square.
    """

    p: int = 1
    needs: ClassVar[set[str]] = {'activation'}

    def __post_init__(self) -> None:
        check_choice('p', self.p, (1, 2))

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` if no layer was seen."""
        seen = [p for p in group.producers if p.tensor in stats.activation]
        if not seen:
            return None
        sums = [
            unit_sums(stats.activation[part.tensor][self.p], part, group.size)
            for part in seen
        ]
        first = group.producers[0]
        mean = sum(sums) / len(sums) / (first.block * first.copies)
        return mean if self.p == 1 else mean.sqrt()


@contextmanager
def _collect(
    model: nn.Module,
    groups: Sequence[PruneGroup],
    weights: Sequence[str],
    stats: Statistics,
) -> Iterator[None]:
    """Fills in the mean size of what the layers put out."""
    sums = stats.activation
    names = {part.tensor for group in groups for part in group.producers}
    with ExitStack() as watching:
        for name in names:
            path, _, leaf = name.rpartition('.')
            if leaf != 'weight':
                continue

            def look(layer: nn.Module, _: Any, out: Tensor, name=name) -> None:
                dim = -1 if isinstance(layer, nn.Linear) else 1
                size = out.detach().double().abs().movedim(dim, 0).flatten(1)
                seen = sums.setdefault(name, {1: 0.0, 2: 0.0})
                # One value per output channel, in place of a weight's row.
                for power in seen:
                    seen[power] = seen[power] + (size**power).mean(1)

            layer = model.get_submodule(path)
            handle = layer.register_forward_hook(look)
            watching.callback(handle.remove)
        yield
    for powers in sums.values():
        for power in powers:
            powers[power] = powers[power] / stats.num_batches


COLLECTORS['activation'] = _collect
