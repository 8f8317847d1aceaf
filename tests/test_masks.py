"""Masks change values, never shapes."""

import pytest
import torch
from torch import nn

from mmprune.groups import PruneGroup, Slice
from mmprune.masks import keep_zeros, mask_plan, read_zeros
from mmprune.plan import PruningPlan


def test_consumers_take_their_fill_and_producers_stay():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = model[0].weight.clone()
    group = PruneGroup(
        'h',
        'neuron',
        3,
        (Slice('0.weight'),),
        (Slice('1.weight', 1), Slice('0.bias', fill=-7.0)),
    )
    mask_plan(model, PruningPlan((group,), {'h': [1, 2]}))
    assert model[1].weight[:, 0].tolist() == [0, 0]
    assert model[1].weight[:, 1:].all()
    assert model[0].bias[0] == -7
    assert torch.equal(model[0].weight, before)


def test_masked_weights_are_zero_even_if_they_were_not_finite():
    model = nn.Sequential(nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[float('nan'), 2.0]])
    keep_zeros(model, {'0.weight': torch.tensor([[False, True]])})
    assert model[0].weight.tolist() == [[0, 2]]
    assert read_zeros(model, ['0.weight'])['0.weight'].tolist() == [
        [False, True]
    ]


def test_what_the_model_has_not_is_named():
    model = nn.Sequential(nn.Linear(2, 1))
    with pytest.raises(ValueError, match="'x.weight'"):
        keep_zeros(model, {'x.weight': torch.ones(1, dtype=torch.bool)})
    group = PruneGroup('g', 'neuron', 2, (), (Slice('y', 1),))
    with pytest.raises(ValueError, match="no tensor 'y'"):
        mask_plan(model, PruningPlan((group,), {'g': [0]}))
