"""Importance from what a model loses without the first units of a group."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import blame
from ..groups import PruneGroup
from ..registry import TASK_UTILS
from ..statistics import Statistics

_L1 = dict(type='mmprune.Magnitude', p=1)


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class Sensitivity:
    """How much worse the model is once a unit and all below it are gone.

    Another criterion says in which order the units of a group go; what was
    measured on data (``tools/sensitivity.py``) says how much worse the model
    then is, a straight line between two measured ratios. Where groups
    compete, each is cut until all cost the same: Li et al., "Pruning Filters
    for Efficient ConvNets", ICLR 2017, chose ratios by such curves by hand. A
    group that was not measured has no score.

    Args:
        path: The file of the measurement.
        importance: The criterion that orders the units of a group, or its
            config; the one of the measurement.

    Raises:
        ValueError: If the file holds something else, or was measured with
            another criterion.
    """

    path: str
    importance: Any = field(default_factory=lambda: dict(_L1))
    # The curves of different groups are in the same unit.
    comparable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.importance, dict):
            built = TASK_UTILS.build(self.importance)
            object.__setattr__(self, 'importance', built)
        measured = self._measured['importance']
        if measured != repr(self.importance):
            raise ValueError(
                f'{self.path} was measured with {measured}, and '
                f'{self.importance!r} would choose now; take the same '
                'criterion, or measure again'
            )

    @property
    def needs(self) -> set[str]:
        """What the other criterion reads."""
        return self.importance.needs

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` where nothing is known."""
        curve = self._measured['curves'].get(group.name)
        score = self.importance(group, stats) if curve else None
        if score is None:
            return None
        order = score.argsort(stable=True).cpu()
        gone = np.arange(1, group.size + 1) / group.size
        found = torch.empty(group.size, dtype=torch.float64)
        found[order] = torch.from_numpy(worse(curve, gone))
        return found

    @cached_property
    def _measured(self) -> dict[str, Any]:
        with blame(f'{self.path} is no file of tools/sensitivity.py'):
            found = json.loads(Path(self.path).read_text())
            sign = -1 if found['higher_is_better'] else 1
            curves = {
                name: {
                    float(ratio): sign * (value - found['dense'])
                    for ratio, value in group['quality'].items()
                }
                for name, group in found['groups'].items()
            }
            return dict(importance=found['importance'], curves=curves)


def worse(curve: dict[float, float], ratios: np.ndarray) -> np.ndarray:
    """Returns how much worse a model is at ratios between measured ones.

    More gone is never better: what noise says otherwise is levelled. Behind
    the last ratio the line goes on as steeply as before it.

    Args:
        curve: Ratio -> how much worse.
        ratios: Any ratios ``[n]``.
    """
    known = {0.0: 0.0, **curve}
    x = np.array(sorted(known))
    y = np.maximum.accumulate([known[ratio] for ratio in x])
    slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
    beyond = np.clip(ratios - x[-1], 0, None)
    return np.interp(ratios, x, y) + slope * beyond
