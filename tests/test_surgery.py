"""Surgery slices every tensor once and keeps the sizes of layers true."""

import pytest
import torch
from torch import nn

from mmprune.groups import PruneGroup, Slice
from mmprune.plan import PruningPlan
from mmprune.surgery import apply_plan, kept_index


def plan(*groups, **keep) -> PruningPlan:
    return PruningPlan(groups, keep)


def test_rows_and_columns_are_the_kept_ones():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    rows, columns = model[0].weight.clone(), model[1].weight.clone()
    group = PruneGroup(
        'h',
        'neuron',
        3,
        (Slice('0.weight'), Slice('0.bias')),
        (Slice('1.weight', 1),),
    )
    apply_plan(model, plan(group, h=[0, 2]))
    assert torch.equal(model[0].weight, rows[[0, 2]])
    assert torch.equal(model[1].weight, columns[:, [0, 2]])
    assert model[0].out_features == model[1].in_features == 2
    assert model.pruning_plan.keep == {'h': [0, 2]}


def test_two_groups_may_slice_one_tensor():
    """Heads and points of a deformable attention lose rows at once."""
    model = nn.ModuleDict({'rows': nn.Linear(1, 6, bias=False)})
    values = torch.arange(6.0).view(6, 1)
    model['rows'].weight.data = values.clone()
    heads = PruneGroup('heads', 'head', 2, (Slice('rows.weight', block=3),))
    points = PruneGroup(
        'points', 'point', 3, (Slice('rows.weight', copies=2),)
    )
    apply_plan(model, plan(heads, points, heads=[1], points=[0, 2]))
    assert model['rows'].weight.flatten().tolist() == [3, 5]


@pytest.mark.parametrize(
    ('layer', 'parts', 'sizes'),
    [
        (nn.Conv2d(4, 4, 1), [0, 1], dict(in_channels=2, out_channels=2)),
        (
            nn.ConvTranspose2d(4, 4, 1),
            [0, 1],
            dict(in_channels=2, out_channels=2),
        ),
        (nn.BatchNorm2d(4), [0], dict(num_features=2)),
        (nn.LayerNorm(4), [0], dict(normalized_shape=(2,))),
        (nn.GroupNorm(1, 4), [0], dict(num_channels=2)),
        (nn.Embedding(4, 4), [1], dict(embedding_dim=2, num_embeddings=4)),
    ],
)
def test_layers_know_their_new_sizes(layer, parts, sizes):
    model = nn.ModuleDict({'l': layer})
    slices = [Slice('l.weight', dim) for dim in parts]
    slices += [
        Slice(f'l.{leaf}')
        for leaf in ('bias', 'running_mean', 'running_var')
        if getattr(layer, leaf, None) is not None
    ]
    apply_plan(
        model, plan(PruneGroup('g', 'channel', 4, tuple(slices)), g=[1, 3])
    )
    assert {k: getattr(layer, k) for k in sizes} == sizes
    if hasattr(layer, 'running_mean'):
        assert layer.running_mean.shape == (2,)


def test_frozen_stays_frozen_and_attributes_follow():
    model = nn.ModuleDict({'l': nn.Linear(2, 6)})
    model['l'].weight.requires_grad_(False)
    group = PruneGroup(
        'g',
        'head',
        3,
        (Slice('l.weight', block=2), Slice('l.bias', block=2)),
        attrs={'l.num_heads': 1, 'l.width': 2},
    )
    apply_plan(model, plan(group, g=[0]))
    assert not model['l'].weight.requires_grad
    assert model['l'].bias.requires_grad
    assert (model['l'].num_heads, model['l'].width) == (1, 2)


GROUP = PruneGroup('g', 'neuron', 4, (Slice('0.weight'), Slice('0.bias')))


def test_a_plan_of_another_model_is_refused():
    with pytest.raises(ValueError, match="has no tensor '0.weight'"):
        apply_plan(nn.ModuleDict({'x': nn.Linear(1, 4)}), plan(GROUP, g=[0]))
    with pytest.raises(ValueError, match='has 3 positions'):
        apply_plan(nn.Sequential(nn.Linear(1, 3)), plan(GROUP, g=[0]))


def test_a_model_is_pruned_once():
    model = nn.Sequential(nn.Linear(1, 4))
    apply_plan(model, plan(GROUP, g=[0, 1]))
    with pytest.raises(ValueError, match='pruned before'):
        apply_plan(model, plan(GROUP, g=[0]))


def test_a_shared_tensor_must_be_sliced_alike():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    group = PruneGroup('g', 'neuron', 4, (Slice('0.weight'),))
    with pytest.raises(ValueError, match="same tensor as '1.weight'"):
        apply_plan(model, plan(group, g=[0]))
    both = PruneGroup('g', 'neuron', 4, (Slice('0.weight'), Slice('1.weight')))
    apply_plan(model, plan(both, g=[0]))
    assert model[0].weight is model[1].weight


def test_one_module_under_two_names_is_no_tie():
    """As the shared branches of a DETR."""
    branch = nn.Linear(4, 4)
    model = nn.ModuleList([branch, branch])
    group = PruneGroup('g', 'neuron', 4, (Slice('0.weight'), Slice('0.bias')))
    apply_plan(model, plan(group, g=[0, 1]))
    assert model[1].weight.shape == (2, 4)
    assert model[1].out_features == 2


def test_the_index_also_slices_what_has_the_shape_of_a_parameter():
    """As the momentum of an optimizer."""
    index = kept_index(
        plan(GROUP, g=[1, 2]), {'0.weight': (4, 1), '0.bias': (4,)}
    )
    momentum = torch.arange(4.0)
    assert momentum[index['0.bias'][0]].tolist() == [1, 2]
