"""Masks change values, never shapes."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from mmprune.groups import PruneGroup, Slice
from mmprune.masks import (
    clear,
    keep_masks,
    mask_plan,
    norm,
    read_zeros,
    unit_regions,
    weight_regions,
)
from mmprune.packing import pack_masks, unpack_masks
from mmprune.plan import PruningPlan
from mmprune.pruners import plan_from_zeros


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
    masks = {'0.weight': torch.tensor([[False, True]])}
    clear(weight_regions(model, masks))
    assert model[0].weight.tolist() == [[0, 2]]
    assert read_zeros(model, ['0.weight'])['0.weight'].tolist() == [
        [False, True]
    ]


def test_what_the_model_has_not_is_named():
    model = nn.Sequential(nn.Linear(2, 1))
    with pytest.raises(ValueError, match="'x.weight'"):
        weight_regions(model, {'x.weight': torch.ones(1, dtype=torch.bool)})
    group = PruneGroup('g', 'neuron', 2, (), (Slice('y', 1),))
    with pytest.raises(ValueError, match="no tensor 'y'"):
        mask_plan(model, PruningPlan((group,), {'g': [0]}))


def test_packed_masks_come_back_and_pass_the_safe_loader(tmp_path):
    masks = {
        'a': torch.rand(3, 5, 7) > 0.5,
        'b': torch.tensor([True]),
        'none': torch.zeros(0, 4, dtype=torch.bool),
    }
    packed = pack_masks(masks, {'b': -1e4})
    assert len(packed['a']['bits']) == 14  # 105 bits
    path = tmp_path / 'masks.pth'
    torch.save(dict(pruning_masks=packed), path)
    loaded = torch.load(path, weights_only=True)['pruning_masks']
    found, fills = unpack_masks(loaded)
    assert fills == {'b': -1e4}
    assert all(torch.equal(found[n], masks[n]) for n in masks)
    with pytest.raises(ValueError, match="no readable mask of 'a'"):
        unpack_masks({'a': dict(shape=[3, 50], bits=packed['a']['bits'])})


def test_a_mask_of_another_shape_is_refused():
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r'shape \(3,\), the tensor \(1, 2\)'):
        weight_regions(model, {'weight': torch.ones(3, dtype=torch.bool)})


def test_the_masks_of_a_plan_are_what_masking_overwrites():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    group = PruneGroup(
        'h',
        'neuron',
        3,
        (Slice('0.weight'),),
        (Slice('1.weight', 1), Slice('0.bias', fill=-7.0)),
    )
    plan = PruningPlan((group,), {'h': [1, 2]})
    regions = unit_regions(model, [group], {'h': [0]}, consumers_only=True)
    masks = keep_masks(regions)
    assert masks['1.weight'].tolist() == [[False, True, True]] * 2
    assert masks['0.bias'].tolist() == [False, True, True]
    assert masks.keys() == {'1.weight', '0.bias'}
    other = copy.deepcopy(model)
    mask_plan(model, plan)
    clear(weight_regions(other, masks, {'0.bias': -7.0}))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    # Filled with -7 and without this unit: found again.
    assert plan_from_zeros(model, [group]).keep == {'h': [1, 2]}


def test_two_fills_of_one_tensor_are_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    groups = tuple(
        PruneGroup(name, 'neuron', 3, (), (Slice('0.bias', fill=fill),))
        for name, fill in (('g', 0.0), ('h', -7.0))
    )
    regions = unit_regions(model, groups, {'g': [1], 'h': [1]})
    with pytest.raises(ValueError, match="fill '0.bias', with 0 and with -7"):
        keep_masks(regions)


def test_a_group_without_units_left_keeps_one():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[1].weight.data.zero_()
    group = PruneGroup(
        'h', 'neuron', 3, (Slice('0.weight'),), (Slice('1.weight', 1),)
    )
    assert plan_from_zeros(model, [group]).keep == {'h': [0]}
    alien = dataclasses.replace(group, consumers=(Slice('9.weight', 1),))
    with pytest.raises(ValueError, match="no tensor '9.weight'"):
        plan_from_zeros(model, [alien])


def test_running_statistics_do_not_write_a_unit():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)
    )
    model[1].running_mean.fill_(0.3)
    names = ('0.weight', '1.weight', '1.bias', '1.running_mean')
    group = PruneGroup(
        'c',
        'channel',
        2,
        tuple(Slice(name) for name in names),
        (Slice('2.weight', 1),),
    )
    for name in names[:3]:
        model.get_parameter(name).data[1] = 0
    assert plan_from_zeros(model, [group]).keep == {'c': [0]}
    model[1].bias.data[1] = 0.1
    with pytest.raises(ValueError, match='has a unit that is zero'):
        plan_from_zeros(model, [group])


def pair() -> tuple[nn.Module, PruneGroup]:
    """Two neurons with a weight on each side."""
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-2.0]]))
        model[0].bias.zero_()
        model[1].weight.copy_(torch.tensor([[3.0, 5.0]]))
        model[1].bias.zero_()
    group = PruneGroup(
        'mlp',
        'neuron',
        2,
        (Slice('0.weight'), Slice('0.bias')),
        (Slice('1.weight', 1),),
    )
    return model, group


def test_clearing_a_unit_removes_it_from_the_output():
    model, group = pair()
    regions = unit_regions(model, [group], {'mlp': [1]})
    assert norm(regions) == pytest.approx((4 + 25) ** 0.5)
    clear(regions)
    assert model[0].weight.flatten().tolist() == [1, 0]
    assert model[1].weight.flatten().tolist() == [3, 0]
    assert model(torch.ones(1, 1)).item() == 3


def test_a_group_without_chosen_units_has_no_region():
    model, group = pair()
    assert unit_regions(model, [group], {}) == []
    assert unit_regions(model, [group], {'mlp': []}) == []
    readers = unit_regions(model, [group], {'mlp': [0]}, consumers_only=True)
    assert [region.name for region in readers] == ['1.weight']


def test_a_region_takes_itself_out_of_gradients():
    model, group = pair()
    (units,) = unit_regions(model, [group], {'mlp': [0]}, consumers_only=True)
    mask = torch.tensor([[False, True]])
    (weights,) = weight_regions(model, {'1.weight': mask})
    for region in (units, weights):
        grad = torch.tensor([[float('inf'), 7.0]])
        region.zero(grad)
        assert grad.tolist() == [[0, 7]]
        assert region.mask().tolist() == [[True, False]]
