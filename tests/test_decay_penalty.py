"""The penalty on what decays, against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn

from mmprune.masks import Region, norm
from mmprune.sparsifying import DecayPenalty


@pytest.mark.parametrize(
    ('penalty', 'formula'),
    [
        (DecayPenalty(2, 'power', 1), lambda t: 2 * t),
        (DecayPenalty(2, 'power', 2), lambda t: 2 * t * t),
        (DecayPenalty(2, 'power', 3), lambda t: 2 * t * t * t),
        (
            DecayPenalty(2, 'exponential', 1),
            lambda t: 2 * math.expm1(t) / math.expm1(1),
        ),
        (DecayPenalty(2), lambda t: 2 * math.expm1(t**4) / math.expm1(1)),
    ],
)
def test_it_follows_its_formula_at_five_points(penalty, formula):
    for t in (0, 0.25, 0.5, 0.75, 1):
        assert penalty.at(t) == pytest.approx(formula(t), abs=1e-12)


def test_the_penalty_of_the_guide():
    found = [DecayPenalty().at(t) for t in (0.25, 0.5, 0.75, 0.9, 1)]
    expected = [0.0023, 0.0375, 0.217, 0.540, 1]
    assert found == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ('wrong', 'found'),
    [
        (dict(shape='cubic'), "found 'cubic'"),
        (dict(per='batch'), "found 'batch'"),
        (dict(mode='hard'), "found 'hard'"),
        (dict(strength=-1), 'strength of the decay .* found -1'),
        (dict(exponent=None), 'exponent of the decay .* found None'),
        (dict(exponent=0), 'exponent of the decay must be positive'),
    ],
)
def test_a_wrong_value_is_refused(wrong, found):
    with pytest.raises(ValueError, match=found):
        DecayPenalty(**wrong)


def region(kind: str, weight: nn.Parameter):
    """The second of two weights."""
    inside = torch.tensor([False, True])
    return Region('w', weight, inside if kind == 'unit' else inside[None])


@pytest.mark.parametrize('kind', ['unit', 'weight'])
def test_a_pulled_step_of_sgd_is_the_one_of_a_hand(kind):
    weight = nn.Parameter(torch.tensor([[2.0, 4.0]]))
    decaying = [region(kind, weight)]
    optimizer = torch.optim.SGD([weight], lr=0.1)
    (3 * weight).sum().backward()
    DecayPenalty().apply(decaying, optimizer, 0.5)
    optimizer.step()
    # 2 - .1 * 3 and 4 - .1 * (3 + .5 * 4)
    assert weight.flatten().tolist() == pytest.approx([1.7, 3.5])
    assert norm(decaying) == pytest.approx(3.5)


@pytest.mark.parametrize('kind', ['unit', 'weight'])
def test_under_adam_the_weight_itself_shrinks(kind):
    weight = nn.Parameter(torch.tensor([[2.0, 4.0]]))
    other = nn.Parameter(torch.ones(1))
    decaying = [region(kind, weight), region('weight', other)]
    optimizer = torch.optim.Adam([weight], lr=0.1)
    DecayPenalty().apply(decaying[:1], optimizer, 2.0)
    # 4 * (1 - .1 * 2)
    assert weight.flatten().tolist() == pytest.approx([2, 3.2])
    # parameters of another optimizer are passed over
    DecayPenalty().apply(decaying[1:], optimizer, 2.0)
    assert other.item() == 1
