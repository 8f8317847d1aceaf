"""Rounding that looks at data: each error is made up for by what follows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .integers import HIGHEST, LOWEST, filled, scales

Run = Callable[[nn.Module, Any], Any]


def gptq(
    weight: Tensor,
    second_moment: Tensor,
    group_size: int,
    damping: float = 0.01,
) -> tuple[Tensor, Tensor]:
    r"""Returns integers and scales of a matrix by GPTQ.

    Column by column a weight is rounded and what its error changes in the
    output is put right by the columns that are still to come, along the rows
    of the Cholesky factor of :math:`(X^T X + \lambda I)^{-1}`. The scale of a
    group is chosen when its first column is reached. Frantar et al., "GPTQ:
    Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", ICLR 2023; the order of the columns is that of the layer.

    Args:
        weight: ``[out, in]``.
        second_moment: :math:`X^T X` of the layer's inputs, ``[in, in]``.
        group_size: Inputs of a group.
        damping: :math:`\lambda` as a fraction of the mean of the diagonal.

    Returns:
        Integers ``[out, whole groups]`` int8, scales ``[out, groups]``.
    """
    columns = filled(weight.detach().float(), group_size).clone()
    factor = _inverse_factor(second_moment, columns.shape[1], damping)
    integers = torch.zeros_like(columns)
    found = []
    for start in range(0, columns.shape[1], group_size):
        stop = start + group_size
        block = columns[:, start:stop].clone()
        scale = scales(block, group_size)
        found.append(scale)
        errors = torch.zeros_like(block)
        step = scale.float()[:, 0]
        for i in range(group_size):
            diagonal = factor[start + i, start + i]
            codes = (block[:, i] / step).round().clamp(LOWEST, HIGHEST)
            integers[:, start + i] = codes
            error = (block[:, i] - codes * step) / diagonal
            row = factor[start + i, start + i : stop]
            block[:, i:] -= error[:, None] * row[None]
            errors[:, i] = error
        columns[:, stop:] -= errors @ factor[start:stop, stop:]
    return integers.to(torch.int8), torch.cat(found, 1)


def _inverse_factor(moment: Tensor, size: int, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse, with rows for filled columns."""
    whole = torch.eye(size, dtype=torch.float64)
    inputs = moment.shape[0]
    diagonal = moment.diagonal().double()
    shift = damping * diagonal.mean().clamp_min(1e-12)
    dead = (diagonal == 0).double()
    # An input that is always zero: its weight is rounded by itself.
    whole[:inputs, :inputs] = moment.double() + torch.diag(shift + dead)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(whole))
    return torch.linalg.cholesky(inverse, upper=True).float()


@contextmanager
def second_moments(
    model: nn.Module, layers: Sequence[str]
) -> Iterator[dict[str, Tensor]]:
    """Adds up :math:`X^T X` of the inputs of layers while it lasts.

    Args:
        model: The model.
        layers: Paths of linear layers.

    Yields:
        Path -> ``[in, in]`` of all inputs so far.
    """
    sums: dict[str, Tensor] = {}

    def look(path: str) -> Any:
        def hook(_: nn.Module, args: tuple) -> None:
            rows = args[0].detach().flatten(0, -2).float()
            found = rows.T @ rows
            sums[path] = sums[path] + found if path in sums else found

        return hook

    handles = [
        model.get_submodule(path).register_forward_pre_hook(look(path))
        for path in layers
    ]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def measure_inputs(
    model: nn.Module, layers: Sequence[str], batches: Iterable[Any], run: Run
) -> dict[str, Tensor]:
    """Returns :math:`X^T X` of the inputs of layers over batches.

    Args:
        model: The model, in eval mode.
        layers: Paths of linear layers.
        batches: Calibration data.
        run: Runs the model on a batch.

    Raises:
        ValueError: If a layer saw nothing.
    """
    with second_moments(model, layers) as sums, torch.no_grad():
        for batch in batches:
            run(model, batch)
    missing = [path for path in layers if path not in sums]
    if missing:
        raise ValueError(
            f'{missing[0]} did not run on the calibration data, of which '
            'rounding by data learns; give data, or round to nearest'
        )
    return sums
