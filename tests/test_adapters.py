"""The contract of every adapter: masking a unit equals removing it."""

import copy

import pytest
import torch
from tiny_models import CASES, Case
from torch import nn

from mmprune.adapters import ffn_groups, mha_groups
from mmprune.discovery import discovered_groups
from mmprune.groups import PruneGroup, Slice
from mmprune.masks import mask_plan
from mmprune.plan import PruningPlan
from mmprune.pruners import check_groups, masked_difference
from mmprune.pruners.verify import relative_difference, tensors_of
from mmprune.surgery import apply_plan


@pytest.fixture(params=CASES)
def case(request) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]()


def half(groups) -> PruningPlan:
    """Drops every second unit, the first one included."""
    groups = [g for g in groups if not g.dense]
    keep = {g.name: list(range(1, g.size, 2)) for g in groups}
    return PruningPlan(tuple(groups), keep)


def test_masked_equals_pruned_for_all_groups_together(case):
    plan = half(case.groups)
    assert masked_difference(case.model, plan, case.forward) < 1e-5


def test_masked_equals_pruned_for_each_group_alone(case):
    for group in case.groups:
        if not group.dense:
            plan = half([group])
            difference = masked_difference(case.model, plan, case.forward)
            assert difference < 1e-5, group.name


def test_every_group_matters(case):
    dense = case.forward(case.model)
    for group in case.groups:
        if not group.dense:
            masked = copy.deepcopy(case.model)
            mask_plan(masked, half([group]))
            assert relative_difference(dense, case.forward(masked)) > 1e-4


def test_a_removed_unit_leaves_every_tensor_of_its_group(case):
    shapes = {n: p.shape for n, p in case.model.state_dict().items()}
    for group in (g for g in case.groups if not g.dense):
        pruned = copy.deepcopy(case.model)
        apply_plan(pruned, half([group]))
        changed = {
            n for n, p in pruned.state_dict().items() if p.shape != shapes[n]
        }
        assert {s.tensor for s in group.slices} <= changed


def test_a_pruned_model_trains(case):
    apply_plan(case.model, half(case.groups))
    case.model.train()
    out = tensors_of(case.forward(case.model))[0]
    out.square().sum().backward()
    grads = [p.grad for p in case.model.parameters() if p.requires_grad]
    assert sum(g is not None for g in grads) == len(grads)
    assert all(torch.isfinite(g).all() for g in grads)


def names(groups):
    return {g.name for g in groups if not g.dense}


def test_units_of_each_family():
    sizes = {
        name: {(g.granularity, g.size) for g in CASES[name]().groups}
        for name in ('vit', 'distilbert', 'llama', 'mha')
    }
    assert sizes == {
        'vit': {('head', 3), ('neuron', 768)},
        'distilbert': {('head', 4), ('neuron', 64)},
        'llama': {('head', 4), ('neuron', 48)},  # key/value heads
        'mha': {('head', 4)},
    }


def test_tracing_finds_depthwise_concat_flatten_and_transposed():
    groups = {g.name: g for g in CASES['depthwise']().groups}
    assert groups['stem'].attrs == {'depthwise.groups': 1}
    by_name = {s.tensor: s for s in groups['right'].consumers}
    assert by_name['up.weight'].offset == 4  # behind the 4 of `left`
    assert by_name['up.weight'].dim == 0
    flat = {s.tensor: s for s in groups['up'].consumers}
    assert flat['head.weight'].block == 4


def test_discovery_leaves_flags_and_modes_alone():
    model = CASES['resnet']().model.train()
    model.conv1.weight.requires_grad_(False)
    model.bn1.eval()
    list(discovered_groups(model, lambda m: m(torch.zeros(1, 3, 64, 64))))
    assert model.training
    assert not model.bn1.training
    assert not model.conv1.weight.requires_grad


def test_channels_that_the_output_shows_stay_dense():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))
    image = torch.zeros(1, 3, 4, 4)
    groups = discovered_groups(model, lambda m: m(image))
    assert [bool(g.dense) for g in groups] == [False, True]
    assert 'output' in groups[1].dense


def test_norm_between_linear_layers_stays_dense():
    model = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    (group,) = ffn_groups(model)
    assert 'LayerNorm' in group.dense


def test_attention_with_key_biases_stays_dense():
    model = nn.ModuleDict({'a': nn.MultiheadAttention(8, 2, add_bias_kv=True)})
    (group,) = mha_groups(model)
    assert 'biases' in group.dense


class Leaky(nn.Module):
    """Shows the channels between its two layers to the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 1)
        self.two = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        x = self.one(x)
        return x, self.two(x)


class Wrapped:
    """An output that nobody can look into."""


def test_outputs_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match='returned Wrapped without'):
        tensors_of(Wrapped())
    nan = torch.tensor([float('nan')])
    with pytest.raises(ValueError, match='not finite'):
        relative_difference(nan, nan)


def test_a_group_that_fails_its_own_check_is_left_dense():
    model = Leaky().eval()
    image = torch.randn(1, 3, 4, 4)
    layer = (Slice('one.weight'), Slice('one.bias'))
    groups = [
        PruneGroup('one', 'channel', 4, layer, (Slice('two.weight', 1),))
    ]
    checked = check_groups(model, groups, lambda m: m(image))
    assert 'shapes differ' in checked[0].dense
