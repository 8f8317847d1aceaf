"""Importance from the scale of the batch norm behind a channel."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..groups import PruneGroup
from ..registry import TASK_UTILS
from ..statistics import Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class BNScale:
    """Absolute batch-norm scale of a channel, averaged over its norms.

    Liu et al., "Learning Efficient Convolutional Networks through Network
    Slimming", ICCV 2017. Meaningful after training with a penalty on the
    scales.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` without a batch norm."""
        scales = []
        for part in group.producers:
            path, _, leaf = part.tensor.rpartition('.')
            kind = stats.kinds.get(path, object)
            norm = issubclass(kind, nn.modules.batchnorm._BatchNorm)
            if norm and leaf == 'weight':
                scale = stats.tensors[part.tensor].float().abs()
                index = part.index(range(group.size), group.size)
                per_unit = scale[index.to(scale.device)]
                scales.append(
                    per_unit.view(part.copies, group.size, -1).mean((0, 2))
                )
        return torch.stack(scales).mean(0) if scales else None
