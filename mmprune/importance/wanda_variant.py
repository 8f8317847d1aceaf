"""Wanda's variant: how much of a row goes with a weight."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..layers import input_dim
from ..registry import TASK_UTILS
from ..statistics import Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class WandaVariant:
    r"""The part of a row's importance that is gone once a weight goes.

    With Wanda's :math:`s_{ij}` the weights of row i go in the order of their
    score; this is :math:`\sum_{k: s_{ik} \le s_{ij}} s_{ik} / \sum_k s_{ik}`,
    sums in float64. Weights at most :math:`\alpha` are those that the
    variant of Sun et al. prunes, whose rows lose different numbers. They
    bisect :math:`\alpha` until the sparsity of a matrix is within 0.001 of
    what was asked for; with ``scope='layer'`` it is met exactly.
    """

    needs: ClassVar[set[str]] = {'inputs'}

    def weights(self, name: str, stats: Statistics) -> Tensor:
        """Returns the importance of each weight of a tensor, in its shape."""
        sizes = stats.tensors[name].abs().float()
        scores = sizes * stats.inputs[name].sqrt()
        dim = input_dim(stats.kinds[name.rpartition('.')[0]])
        rows = scores.movedim(1 - dim, 0)
        flat = rows.reshape(len(rows), -1)
        ordered, order = flat.sort(dim=1, stable=True)
        gone = ordered.double().cumsum(1)
        gone = gone / gone[:, -1:].clamp_min(torch.finfo(gone.dtype).tiny)
        parts = torch.empty_like(gone).scatter(1, order, gone)
        return parts.view(rows.shape).movedim(0, 1 - dim)
