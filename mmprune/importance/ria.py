"""Importance relative to row and column, times the input."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..layers import input_dim
from ..registry import TASK_UTILS
from ..statistics import Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class RIA:
    r"""Relative importance and activations.

    :math:`\left(\frac{|w_{ij}|}{\sum_k |w_{ik}|} +
    \frac{|w_{ij}|}{\sum_k |w_{kj}|}\right) \|x_j\|_2^a`. Zhang et al.,
    "Plug-and-Play: An Efficient Post-training Pruning Method for Large
    Language Models", ICLR 2024; without their permutation of channels.

    Args:
        power: The exponent a of the norm.
    """

    power: float = 0.5
    needs: ClassVar[set[str]] = {'inputs'}

    def __post_init__(self) -> None:
        if not self.power >= 0:
            raise ValueError(f'power is at least 0, found {self.power}')

    def weights(self, name: str, stats: Statistics) -> Tensor:
        """Returns the importance of each weight of a tensor, in its shape."""
        size = stats.tensors[name].abs().float()
        dim = input_dim(stats.kinds[name.rpartition('.')[0]])
        rest = [d for d in range(size.ndim) if d != 1 - dim]
        by_row = size.sum(rest, keepdim=True)
        by_column = size.sum(1 - dim, keepdim=True)
        tiny = 1e-30
        relative = size / by_row.clamp_min(tiny)
        relative = relative + size / by_column.clamp_min(tiny)
        return relative * stats.inputs[name].pow(self.power / 2)
