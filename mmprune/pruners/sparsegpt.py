"""Prunes a matrix and lets the surviving weights make up for it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..allocation import lowest, round_half_up
from ..checks import parse_pattern
from ..patterns import lowest_of_planes
from ..registry import TASK_UTILS

# Columns that are updated one by one before the rest of a block is.
_STRIP = 16


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class SparseGPT:
    r"""Optimal brain surgery, one column of a matrix after the other.

    With inputs :math:`X` and :math:`H = 2 X X^T`, damped, the upper Cholesky
    factor :math:`U` of :math:`H^{-1} = U^T U` says how the columns behind
    column j make up for what it loses: :math:`w_k \mathrel{-}= U_{jk} (w_j -
    q_j) / U_{jj}`, where :math:`q_j` is :math:`w_j` with zeros where it is
    pruned. Scores are :math:`w_j^2 / U_{jj}^2`: those of a block of columns
    compete over all rows; with a pattern those of M neighbours of a row,
    with the weights as they are when their turn comes. Frantar & Alistarh,
    "SparseGPT: Massive Language Models Can Be Accurately Pruned in
    One-Shot", ICML 2023. All in float32.

    Different from their code: exactly the fraction that was asked for is
    pruned (theirs takes one more of each block, and ties); U comes from one
    factorisation of the reversed matrix instead of two and an inverse; with
    a pattern the block is shortened to whole groups, and what fills no group
    at the end of a row stays.

    Args:
        damping: What is added to the diagonal of H, as a fraction of its
            mean; ten times as much if H cannot be factorised, up to 1.
        block_size: Columns of a block.
    """

    damping: float = 0.01
    block_size: int = 128
    needs: ClassVar[set[str]] = {'hessian'}

    def __post_init__(self) -> None:
        if not self.damping >= 0 or self.block_size < 1:
            raise ValueError(
                'damping must not be negative and block_size at least 1, '
                f'found {self.damping} and {self.block_size}'
            )

    def solve(
        self,
        weight: Tensor,
        hessian: Tensor,
        sparsity: float,
        pattern: str | None = None,
        pruned: Tensor | None = None,
    ) -> Tensor:
        """Returns the pruned weights, in float32.

        Args:
            weight: ``[out, in]``.
            hessian: ``[in, in]``.
            sparsity: Fraction to zero, without a pattern.
            pattern: ``'N:M'``: N of M neighbours stay.
            pruned: What goes, ``[out, in]``; by default chosen here.

        Raises:
            ValueError: If the Hessian cannot be factorised.
        """
        # Transposed, so that a column of the matrix is contiguous.
        columns = weight.detach().float().T.contiguous()
        factor, dead = self._factor(hessian.float())
        columns[dead] = 0
        chosen = None if pruned is None else pruned.T.contiguous()
        size = self.block_size
        group = 0
        if pattern is not None and chosen is None:
            kept, group = parse_pattern(pattern)
            size = max(size // group, 1) * group
            sparsity = 1 - kept / group
        before = 0
        for start in range(0, len(columns), size):
            end = min(start + size, len(columns))
            part = factor[start:end, start:end]
            gone = None if chosen is None else chosen[start:end]
            if gone is None and not group:
                total = round_half_up(sparsity * columns[:end].numel())
                gone = _lowest(columns[start:end], part, total - before)
                before = total
            errors = _sweep(columns[start:end], part, gone, group, sparsity)
            rest = factor[start:end, end:]
            columns[end:] -= rest.T @ errors
        return columns.T

    def _factor(self, hessian: Tensor) -> tuple[Tensor, Tensor]:
        """Returns U, and which inputs are always zero."""
        diagonal = hessian.diagonal()
        dead = diagonal == 0
        mean = torch.where(dead, 1.0, diagonal).mean()
        damping = self.damping
        while True:
            filled = torch.where(dead, 1.0, diagonal) + damping * mean
            whole = hessian.clone().diagonal_scatter(filled)
            # Of H reversed the lower factor, reversed, is upper: H = R R^T,
            # and U is the inverse of R.
            lower, failed = torch.linalg.cholesky_ex(whole.flip(0, 1))
            if not failed:
                break
            if damping >= 1:
                raise ValueError(
                    'the inputs of a layer depend on each other so much that '
                    'their products cannot be factorised; give more '
                    'calibration data or a larger damping'
                )
            damping = max(10 * damping, 1e-3)
        return _inverse(lower).flip(0, 1).contiguous(), dead


def _inverse(lower: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix.

    By halves, so that nearly all of it are products of matrices.
    """
    half = len(lower) // 2
    if half < _STRIP * 4:
        eye = torch.eye(len(lower), device=lower.device)
        return torch.linalg.solve_triangular(lower, eye, upper=False)
    found = torch.zeros_like(lower)
    first, second = (
        _inverse(lower[:half, :half]),
        _inverse(lower[half:, half:]),
    )
    found[:half, :half], found[half:, half:] = first, second
    found[half:, :half] = -second @ (lower[half:, :half] @ first)
    return found


def _lowest(columns: Tensor, factor: Tensor, count: int) -> Tensor:
    """Which ``count`` weights of a block go, ``[columns, out]``.

    Ties go in the order of rows, then of columns.
    """
    scores = (columns / factor.diagonal()[:, None]).square()
    mask = lowest(scores.T.flatten(), count)
    return mask.view(scores.T.shape).T


def _sweep(
    columns: Tensor,
    factor: Tensor,
    gone: Tensor | None,
    group: int,
    sparsity: float,
) -> Tensor:
    """Prunes a block in place; returns the errors ``[columns, out]``."""
    count = len(columns)
    errors = torch.empty_like(columns)
    strip = max(_STRIP // group, 1) * group if group else _STRIP
    for start in range(0, count, strip):
        end = min(start + strip, count)
        mask = None if gone is None else gone[start:end]
        for i in range(start, end):
            if group and (i - start) % group == 0:
                fits = i + group <= count
                mask = _of_group(columns, factor, i, group, sparsity, fits)
            place = (i - start) % group if group else i - start
            kept = columns[i].masked_fill(mask[place], 0)
            error = (columns[i] - kept) / factor[i, i]
            columns[i] = kept
            columns[i + 1 : end] -= factor[i, i + 1 : end, None] * error
            errors[i] = error
        columns[end:] -= factor[start:end, end:].T @ errors[start:end]
    return errors


def _of_group(
    columns: Tensor,
    factor: Tensor,
    start: int,
    group: int,
    sparsity: float,
    fits: bool,
) -> Tensor:
    """Which of the next ``group`` weights of each row go ``[group, out]``."""
    part = columns[start : start + group]
    if not fits:
        return torch.zeros_like(part, dtype=torch.bool)
    diagonal = factor.diagonal()[start : start + group]
    scores = (part / diagonal[:, None]).square()
    count = round_half_up(sparsity * group)
    return lowest_of_planes(scores, count)
