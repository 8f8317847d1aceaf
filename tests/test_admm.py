"""Values for surviving weights against the least squares of each row."""

import pytest
import torch
from test_sparsegpt import error, hessian

from mmprune.pruners import ADMM, LayerwisePruner, SparseGPT


def best(weight, products, pruned):
    """The least squares of each row, by normal equations."""
    found = torch.zeros_like(weight)
    for row, gone in enumerate(pruned):
        kept = ~gone
        left = products[kept][:, kept]
        right = products[kept] @ weight[row]
        found[row, kept] = torch.linalg.solve(left, right)
    return found


def test_many_steps_find_the_least_squares_of_each_row():
    weight, pruned = torch.randn(6, 12), torch.rand(6, 12) < 0.5
    inputs = torch.randn(300, 12)
    products = 2 * inputs.T @ inputs
    found = ADMM(steps=300, damping=1e-6).solve(
        weight, products, pruned=pruned
    )
    assert torch.equal(found == 0, pruned)
    assert (found - best(weight, products, pruned)).abs().max() < 1e-4


def test_twenty_steps_are_better_than_one_sweep_of_columns():
    weight, products = torch.randn(40, 64), hessian(64)
    pruned = torch.rand(40, 64) < 0.5
    alone = error(weight.masked_fill(pruned, 0), weight, products)
    swept = SparseGPT().solve(weight, products, 0, None, pruned)
    found = ADMM().solve(weight, products, pruned=pruned)
    assert error(found, weight, products) < error(swept, weight, products)
    assert error(swept, weight, products) < alone


def test_weights_of_dead_inputs_are_harmless():
    products, weight = hessian(6), torch.randn(3, 6)
    products[2], products[:, 2] = 0, 0
    pruned = torch.zeros(3, 6, dtype=torch.bool)
    found = ADMM(damping=1e-3).solve(weight, products, pruned=pruned)
    assert found.isfinite().all()


def test_it_does_not_choose():
    with pytest.raises(ValueError, match='does not choose weights'):
        LayerwisePruner(0.5, importance=None, reconstruct=ADMM())
    with pytest.raises(ValueError, match='give `importance` too'):
        ADMM().solve(torch.ones(2, 2), torch.eye(2))


@pytest.mark.parametrize('options', [dict(steps=0), dict(damping=0)])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match='steps must be at least 1'):
        ADMM(**options)
