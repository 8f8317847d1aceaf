"""Slices find the positions of units; groups survive a round trip."""

import pytest
import torch

from mmprune.groups import (
    PruneGroup,
    Slice,
    named_tensors,
    unit_elements,
    unit_sums,
)
from mmprune.plan import PruningPlan


@pytest.mark.parametrize(
    ('part', 'units', 'size', 'positions'),
    [
        (Slice('w'), [0, 2], 3, [0, 2]),
        (Slice('w', block=2), [0, 2], 3, [0, 1, 4, 5]),
        (Slice('w', offset=4), [1], 3, [5]),
        # a fused qkv of 2 heads of width 2: q0 q0 q1 q1 k0 k0 k1 k1 v0 ...
        (Slice('w', block=2, copies=3), [1], 2, [2, 3, 6, 7, 10, 11]),
        # the y and x of point 1 of 4, for two heads
        (Slice('w', block=2, copies=2), [1], 4, [2, 3, 10, 11]),
    ],
)
def test_index(part, units, size, positions):
    assert part.index(units, size).tolist() == positions


def test_end_is_behind_the_last_position():
    part = Slice('w', block=2, offset=3, copies=3)
    assert part.end(4) == part.index([3], 4).max() + 1 == 27


def test_unit_sums_add_all_elements_of_a_unit():
    values = torch.tensor([[1.0, 2, 3, 4], [10, 20, 30, 40]])
    assert unit_sums(values, Slice('w', 1, block=2), 2).tolist() == [33, 77]
    assert unit_sums(values, Slice('w', 0), 2).tolist() == [10, 100]
    copies = Slice('w', 1, copies=2)
    assert unit_sums(values, copies, 2).tolist() == [44, 66]
    assert unit_elements(values.shape, copies) == 4


def test_round_trip_of_a_group():
    group = PruneGroup(
        'attn',
        'head',
        4,
        (Slice('qkv.weight', 0, 8, copies=3),),
        (Slice('proj.weight', 1, 8, fill=-1.0),),
        {'attn.num_heads': 1},
    )
    plan = PruningPlan((group,), {'attn': [0, 2]})
    (data,) = plan.to_dict()['groups']
    assert data['producers'] == [dict(tensor='qkv.weight', block=8, copies=3)]
    assert PruningPlan.from_dict(plan.to_dict()) == plan


def test_unknown_field_of_a_group_is_refused():
    group = PruneGroup('a', 'head', 2, (Slice('w'),))
    plan = PruningPlan((group,), {'a': [0]}).to_dict()
    (data,) = plan['groups']
    plan['groups'] = [{**data, 'colour': 'red'}]
    with pytest.raises(ValueError, match='written by another version'):
        PruningPlan.from_dict(plan)
    plan['groups'] = [{'name': 'a'}]
    with pytest.raises(ValueError, match='not a pruning group'):
        PruningPlan.from_dict(plan)


def test_shared_tensors_are_named_twice():
    layer = torch.nn.Linear(2, 2)
    model = torch.nn.ModuleList([layer, layer])
    names = named_tensors(model)
    assert names['0.weight'] is names['1.weight']
