"""Importance from what the units put out."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..checks import check_choice
from ..groups import PruneGroup, unit_sums
from ..registry import TASK_UTILS
from ..statistics import Statistics


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
