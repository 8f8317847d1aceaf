"""Gives the weights that a mask leaves the best values, all at once."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..registry import TASK_UTILS


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class ADMM:
    r"""Least squares over the surviving weights, by alternating directions.

    For a matrix W with inputs :math:`X`, :math:`H = 2 X X^T` and a mask it
    looks for the :math:`Z` of the mask with the least :math:`\|(W - Z) X\|`.
    Inputs are scaled to norm one and H is damped; then, with one inverse of
    :math:`H + \rho I` for all rows, in turns :math:`Y = (H + \rho I)^{-1} (H
    W^T + \rho (Z - U))`, :math:`Z` = what the mask leaves of :math:`Y + U`,
    and :math:`U \mathrel{+}= Y - Z`. Boža, "Fast and Effective Weight Update
    for Pruned Large Language Models", TMLR 2024. In float32. Which weights
    go, a criterion says; the paper's own choice in several steps is left out.

    Args:
        steps: How many turns.
        damping: What is added to the diagonal of H, as a fraction of it.
        rho: Weight of the agreement between Y and Z.
    """

    steps: int = 20
    damping: float = 0.1
    rho: float = 1.0
    needs: ClassVar[set[str]] = {'hessian'}

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.damping > 0 or not self.rho > 0:
            raise ValueError(
                'steps must be at least 1, damping and rho positive, found '
                f'{self.steps}, {self.damping} and {self.rho}'
            )

    def solve(
        self,
        weight: Tensor,
        hessian: Tensor,
        sparsity: float = 0.0,
        pattern: str | None = None,
        pruned: Tensor | None = None,
    ) -> Tensor:
        """Returns the pruned weights, in float32.

        Args:
            weight: ``[out, in]``.
            hessian: ``[in, in]``.
            sparsity: Not used.
            pattern: Not used.
            pruned: What goes, ``[out, in]``.

        Raises:
            ValueError: If nothing says what goes.
        """
        if pruned is None:
            raise ValueError(
                'ADMM gives values to weights that stay, and does not choose '
                'them; give `importance` too'
            )
        norms = hessian.diagonal().float().sqrt()
        # An input that is always zero; its weights do not matter.
        norms = torch.where(norms > 0, norms, 1.0)
        scaled = hessian.float() / norms / norms[:, None]
        eye = torch.eye(len(scaled), device=scaled.device)
        scaled = scaled + self.damping * eye
        inverse = torch.linalg.inv(scaled + self.rho * eye)
        dense = (weight.detach().float() * norms).T
        target = inverse @ (scaled @ dense)
        inverse = self.rho * inverse
        gone = pruned.T
        found = dense.masked_fill(gone, 0)
        missed = torch.zeros_like(found)
        for _ in range(self.steps):
            free = target + inverse @ (found - missed) + missed
            found = free.masked_fill(gone, 0)
            missed = free - found
        return found.T / norms
