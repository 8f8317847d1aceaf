"""SparseGPT against the algorithm as it is published."""

import pytest
import torch
from torch import Tensor

from mmprune.allocation import lowest_overall
from mmprune.patterns import lowest_of_group
from mmprune.pruners import SparseGPT


def hessian(inputs: int, rows: int = 200) -> Tensor:
    """Twice the products of inputs that depend on each other."""
    mixed = torch.randn(rows, inputs) @ torch.randn(inputs, inputs)
    return 2 * mixed.T @ mixed


def published(
    weight: Tensor, products: Tensor, count: int, group: tuple | None = None
) -> Tensor:
    """One block of columns, as in algorithm 1 of the paper.

    Args:
        weight: ``[out, in]``.
        products: The damped Hessian.
        count: Weights that go, without a group.
        group: N that go of M.
    """
    inverse = torch.linalg.inv(products.double())
    factor = torch.linalg.cholesky(inverse, upper=True)
    weight = weight.double().clone()
    scores = (weight / factor.diagonal()).square()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    if group is None:
        mask.view(-1)[scores.flatten().argsort()[:count]] = True
    for j in range(weight.shape[1]):
        if group and j % group[1] == 0:
            part = weight[:, j : j + group[1]]
            scores = (part / factor.diagonal()[j : j + group[1]]).square()
            lost = scores.argsort(1)[:, : group[0]]
            mask.scatter_(1, j + lost, True)
        kept = weight[:, j].masked_fill(mask[:, j], 0)
        error = (weight[:, j] - kept) / factor[j, j]
        weight[:, j:] -= error[:, None] * factor[j, j:]
        weight[:, j] = kept
    return weight.float()


def damped(products: Tensor, damping: float = 0.01) -> Tensor:
    mean = products.diagonal().mean()
    return products + damping * mean * torch.eye(len(products))


def error(weight: Tensor, other: Tensor, products: Tensor) -> float:
    """Square of the difference of what two matrices make of the inputs."""
    change = weight - other
    return float(((change @ products) * change).sum())


def test_a_block_is_pruned_as_published():
    weight, products = torch.randn(6, 40), hessian(40)
    found = SparseGPT().solve(weight, products, 0.5)
    expected = published(weight, damped(products), 120)
    assert torch.equal(found == 0, expected == 0)
    assert (found - expected).abs().max() < 1e-3


@pytest.mark.parametrize(
    ('pattern', 'lost'), [('2:4', (2, 4)), ('1:4', (3, 4))]
)
def test_a_pattern_is_pruned_as_published(pattern, lost):
    weight, products = torch.randn(6, 40), hessian(40)
    found = SparseGPT().solve(weight, products, 0.5, pattern)
    expected = published(weight, damped(products), 0, lost)
    assert torch.equal(found == 0, expected == 0)
    assert (found - expected).abs().max() < 1e-3


def test_blocks_of_columns_change_what_competes_and_nothing_else():
    """With a mask that is given, blocks only save time."""
    weight, products = torch.randn(8, 96), hessian(96)
    pruned = torch.rand(8, 96) < 0.5
    whole = SparseGPT(block_size=96).solve(weight, products, 0, None, pruned)
    parts = SparseGPT(block_size=20).solve(weight, products, 0, None, pruned)
    assert torch.equal(whole == 0, pruned)
    assert torch.equal(parts == 0, pruned)
    assert (whole - parts).abs().max() < 1e-3


def test_independent_inputs_leave_the_magnitude_of_each_block():
    """With H = I nothing can be made up for."""
    weight = torch.randn(5, 24)
    found = SparseGPT(block_size=8).solve(weight, torch.eye(24), 0.5)
    for start in range(0, 24, 8):
        part = weight[:, start : start + 8]
        lost = lowest_overall({'w': part.abs()}, 0.5)['w']
        expected = part.masked_fill(lost, 0)
        assert torch.equal(found[:, start : start + 8], expected)


def test_independent_inputs_leave_the_magnitude_of_each_group():
    weight = torch.randn(5, 24)
    found = SparseGPT().solve(weight, torch.eye(24), 0.5, '2:4')
    lost = lowest_of_group(weight.abs(), 2, 4)
    assert torch.equal(found, weight.masked_fill(lost, 0))


@pytest.mark.parametrize('sparsity', [0.0, 0.3, 0.5, 0.77])
@pytest.mark.parametrize('width', [24, 172])
def test_the_sparsity_is_met_exactly_over_all_blocks(sparsity, width):
    weight = torch.randn(7, width)
    found = SparseGPT(block_size=50).solve(weight, hessian(width), sparsity)
    assert int((found == 0).sum()) == int(sparsity * 7 * width + 0.5)


def test_survivors_make_up_for_what_goes():
    weight, products = torch.randn(30, 64), hessian(64)
    found = SparseGPT().solve(weight, products, 0.5)
    alone = torch.where(found == 0, 0, weight)
    most = 0.8 * error(alone, weight, products)
    assert error(found, weight, products) < most


def test_an_input_that_is_always_zero_loses_its_weights():
    weight, products = torch.randn(4, 8), hessian(8)
    products[3], products[:, 3] = 0, 0
    found = SparseGPT().solve(weight, products, 0.0)
    assert (found[:, 3] == 0).all()
    rest = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(found[:, rest], weight[:, rest])


def test_inputs_that_repeat_each_other_get_more_damping():
    products = torch.ones(8, 8)
    weight = torch.randn(4, 8)
    found = SparseGPT(damping=0).solve(weight, products, 0.5)
    assert found.isfinite().all()
    assert int((found == 0).sum()) == 16


def test_what_cannot_be_factorised_is_an_error():
    products = -torch.eye(4) * 100
    with pytest.raises(ValueError, match='cannot be factorised'):
        SparseGPT(damping=1.0).solve(torch.randn(2, 4), products, 0.5)


@pytest.mark.parametrize('options', [dict(damping=-1), dict(block_size=0)])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match='damping must not be negative'):
        SparseGPT(**options)
