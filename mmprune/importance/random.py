"""Random importance: the baseline every criterion has to beat."""

import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..groups import PruneGroup
from ..registry import TASK_UTILS
from ..statistics import Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class Random:
    """Uniform numbers that depend on the seed and the group's name only.

    Args:
        seed: Another seed, another choice.
    """

    seed: int = 0
    needs: ClassVar[set[str]] = set()

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor:
        """Returns the importance of each unit, ``[group.size]``."""
        # Mixed here: the generator reads the low 32 bits of a seed only.
        seed = zlib.crc32(f'{self.seed}/{group.name}'.encode())
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(group.size, generator=generator)
