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
    """Uniform numbers that depend on the seed and a name only.

    Args:
        seed: Another seed, another choice.
    """

    seed: int = 0
    needs: ClassVar[set[str]] = set()

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor:
        """Returns the importance of each unit, ``[group.size]``."""
        return torch.rand(group.size, generator=self._generator(group.name))

    def weights(self, name: str, stats: Statistics) -> Tensor:
        """Returns the importance of each weight of a tensor, in its shape."""
        shape = stats.tensors[name].shape
        drawn = torch.rand(shape, generator=self._generator(name))
        return drawn.to(stats.tensors[name].device)

    def _generator(self, name: str) -> torch.Generator:
        # Mixed here: the generator reads the low 32 bits of a seed only.
        seed = zlib.crc32(f'{self.seed}/{name}'.encode())
        return torch.Generator().manual_seed(seed)
