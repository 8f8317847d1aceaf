"""Pruners: from a model to a plan, with exact counts and clear refusals."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_models import CASES
from torch import nn

from mmprune.cost import cost_table
from mmprune.cost_table import kept_cost
from mmprune.groups import PruneGroup, Slice
from mmprune.importance import BNScale, Magnitude, Random
from mmprune.plan import PruningPlan
from mmprune.pruners import (
    StructuredPruner,
    WeightPruner,
    narrow_weights,
    protect,
    protect_frozen,
    prunable_weights,
)
from mmprune.pruners.verify import (
    TOLERANCE,
    _difference,
    masked_difference,
)
from mmprune.registry import TASK_UTILS


@pytest.fixture
def vit():
    return CASES['vit']()


def counts(plan):
    return {g.name: len(plan.keep[g.name]) for g in plan.groups}


def test_each_granularity_loses_the_asked_fraction(vit):
    plan = StructuredPruner(0.5)(vit.model, vit.groups)
    kept = counts(plan)
    heads = [n for n in kept if n.endswith('attn')]
    assert sum(kept[n] for n in heads) == 3  # of 6
    assert sum(kept.values()) - 3 == 768  # of 1536


def test_layer_scope_loses_it_in_every_group(vit):
    plan = StructuredPruner(0.25, scope='layer')(vit.model, vit.groups)
    kept = counts(plan)
    assert {n: k for n, k in kept.items() if 'mlp' in n} == {
        'blocks.0.mlp': 576,
        'blocks.1.mlp': 576,
    }
    assert kept['blocks.0.attn'] == 2


def chain(net, *paths):
    """Groups of a stack of layers, each read by the next."""
    return [
        PruneGroup(
            a,
            'channel',
            len(net.get_submodule(a).weight),
            (Slice(f'{a}.weight'),),
            (Slice(f'{b}.weight', 1),),
        )
        for a, b in zip(paths, paths[1:], strict=False)
    ]


def test_isomorphic_scope_compares_layers_of_equal_structure():
    conv = [nn.Conv2d(4, 4, 1, bias=False) for _ in range(3)]
    net = nn.Sequential(*conv, nn.Flatten(), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        for layer, row in zip(
            [*conv, net[4]],
            ([1, 1, 1, 9], [1, 9, 9, 9], [7, 7, 7, 7], [1, 1, 1, 1]),
            strict=True,
        ):
            values = torch.tensor(row, dtype=torch.float).view(4, 1, 1, 1)
            layer.weight.copy_(values.expand(4, 4, 1, 1).view_as(layer.weight))
    groups = chain(net, '0', '1', '2', '4')
    pruner = StructuredPruner(
        0.5, Magnitude(sides='producers'), scope='isomorphic', normalize=None
    )
    # 0 and 1 are read by a convolution and lose 4 of 8 units together; what
    # the linear layer reads is another structure and loses 2 of its own 4.
    assert counts(pruner(net, groups)) == {'0': 1, '1': 3, '2': 2}
    everywhere = replace(pruner, scope='global', sparsity=1 / 3)
    assert counts(everywhere(net, groups)) == {'0': 1, '1': 3}


def test_isomorphic_scope_meets_a_budget_of_all_structures(vit):
    costs = cost_table(vit.model, vit.forward)
    pruner = StructuredPruner(0.4, target='macs', scope='isomorphic')
    plan = pruner(vit.model, vit.groups, costs=costs)
    left = kept_cost(costs, 'macs', plan.groups)(plan.keep)
    assert left / costs.total('macs') == pytest.approx(0.6, abs=0.005)


def test_a_group_with_large_weights_does_not_win_by_size(vit):
    with torch.no_grad():
        vit.model.blocks[0].mlp.fc1.weight *= 100
        vit.model.blocks[0].mlp.fc2.weight *= 100
    kept = counts(StructuredPruner(0.5)(vit.model, vit.groups))
    assert 284 < kept['blocks.0.mlp'] < 484


def test_the_unit_that_matters_least_goes_first(vit):
    with torch.no_grad():
        vit.model.blocks[1].mlp.fc2.weight[:, 5] = 0
        vit.model.blocks[1].mlp.fc1.weight[5] = 0
    plan = StructuredPruner(1 / 1536)(vit.model, vit.groups)
    (group,) = plan.groups
    assert plan.removed(group) == [5]


@pytest.mark.parametrize('target', ['params', 'macs'])
@pytest.mark.parametrize('name', ['resnet', 'vit', 'distilbert', 'llama'])
def test_cost_targets_are_met(name, target):
    case = CASES[name]()
    costs = cost_table(case.model, case.forward)
    pruner = StructuredPruner(0.3, target=target, tolerance=0.01)
    plan = pruner(case.model, case.groups, costs=costs)
    left = kept_cost(costs, target, plan.groups)(plan.keep)
    assert left / costs.total(target) == pytest.approx(0.7, abs=0.01)


def test_round_to_is_for_wide_groups_only(vit):
    plan = StructuredPruner(0.4, round_to=64)(vit.model, vit.groups)
    for name, kept in counts(plan).items():
        assert kept % 64 == 0 or 'attn' in name


def test_the_model_is_left_as_it_is(vit):
    before = {k: v.clone() for k, v in vit.model.state_dict().items()}
    StructuredPruner(0.5)(vit.model, vit.groups)
    after = vit.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_provenance_is_plain_data(vit):
    plan = StructuredPruner(0.5, importance=Magnitude(p=2))(
        vit.model, vit.groups
    )
    assert plan.provenance['importance'].startswith('Magnitude(p=2, ')
    assert plan.provenance['sparsity'] == 0.5


def test_a_config_builds_pruner_and_criterion():
    pruner = TASK_UTILS.build(
        dict(
            type='mmprune.StructuredPruner',
            sparsity=0.2,
            importance=dict(type='mmprune.Random', seed=3),
        )
    )
    assert pruner.importance == Random(seed=3)


def test_requests_that_cannot_work_are_refused(vit):
    with pytest.raises(ValueError, match="found 'flops'"):
        StructuredPruner(0.5, target='flops')
    with pytest.raises(ValueError, match='no group is open for BNScale'):
        StructuredPruner(0.5, importance=BNScale())(vit.model, vit.groups)
    with pytest.raises(ValueError, match='needs the cost of the model'):
        StructuredPruner(0.5, target='macs')(vit.model, vit.groups)
    with pytest.raises(ValueError, match="found 'all'"):
        StructuredPruner(0.5, scope='all')(vit.model, vit.groups)


def test_protection_by_group_or_tensor_name(vit):
    groups = protect(vit.groups, ['attn$', r'blocks\.1\.mlp\.fc2'])
    dense = {g.name: g.dense for g in groups if g.dense}
    assert dense == {
        'blocks.0.attn': 'protected by attn$',
        'blocks.1.attn': 'protected by attn$',
        'blocks.1.mlp': r'protected by blocks\.1\.mlp\.fc2',
    }


def test_frozen_layers_stay_dense_but_frozen_norms_do_not_count():
    case = CASES['resnet']()
    case.model.layer1.requires_grad_(False)
    for module in case.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    groups = protect_frozen(case.groups, case.model)
    dense = {g.name for g in groups if g.dense}
    assert {'layer1.0.conv1', 'layer1.1.conv1'} <= dense
    assert 'layer2.0.conv1' not in dense


@pytest.mark.parametrize('scope', ['global', 'layer'])
@pytest.mark.parametrize('sparsity', [0, 0.123, 0.5, 0.999])
def test_exactly_the_asked_weights_are_zero(sparsity, scope):
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Linear(5, 11))
    plan = WeightPruner(sparsity, scope=scope)(model)
    parts = [model[0].weight, model[1].weight]
    assert set(plan.sparse) == {'0.weight', '1.weight'}
    if scope == 'global':
        parts = [torch.cat([p.flatten() for p in parts])]
    for part in parts:
        asked = int(sparsity * part.numel() + 0.5)
        assert int((part == 0).sum()) == asked


def test_the_smallest_weights_go_and_biases_stay():
    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[0.1, -5.0, 0.2, -0.3]])
    model[1].weight.data = torch.tensor([[4.0, -0.05]])
    biases = [layer.bias.clone() for layer in model]
    WeightPruner(0.5)(model)
    expected = torch.tensor([[0, -5.0, 0, -0.3]])
    assert torch.equal(model[0].weight.detach(), expected)
    assert model[1].weight.tolist() == [[4, 0]]
    assert all(
        torch.equal(b, layer.bias)
        for b, layer in zip(biases, model, strict=True)
    )


def test_which_weights_are_prunable():
    model = nn.ModuleDict(
        {
            'attn': nn.MultiheadAttention(4, 2),
            'norm': nn.LayerNorm(4),
            'table': nn.Embedding(3, 4),
            'one': nn.Linear(4, 4),
            'two': nn.Linear(4, 4),
        }
    )
    model['two'].weight = model['one'].weight
    assert list(prunable_weights(model)) == [
        'attn.in_proj_weight',
        'attn.out_proj.weight',
        'one.weight',
    ]
    assert list(prunable_weights(model, ['attn'])) == ['one.weight']


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match='nothing can be pruned'):
        WeightPruner(0.5)(nn.LayerNorm(4))
    with pytest.raises(ValueError, match="found 'all'"):
        WeightPruner(0.5, scope='all')


# ------------------------------------------------- single weights in patterns


def reference(weight, count=2, size=4):
    """Ten lines: the lowest of every group along the inputs, ties first."""
    inputs = weight.detach().movedim(1, -1)
    zeroed = inputs.clone().reshape(-1, inputs.shape[-1])
    for row in zeroed:
        for start in range(0, len(row), size):
            group = row[start : start + size]
            order = sorted(range(size), key=lambda i: (abs(group[i]), i))
            group[order[:count]] = 0
    return zeroed.view(inputs.shape).movedim(-1, 1)


@pytest.mark.parametrize(
    ('pattern', 'count', 'size'), [('2:4', 2, 4), ('4:8', 4, 8), ('1:4', 3, 4)]
)
def test_patterns_run_along_what_a_kernel_reads(pattern, count, size):
    model = nn.Sequential(nn.Conv2d(8, 3, 3), nn.Linear(16, 5))
    with torch.no_grad():
        for module in model:  # with ties
            module.weight.copy_(torch.randint(-3, 4, module.weight.shape))
    expected = [reference(m.weight, count=count, size=size) for m in model]
    plan = WeightPruner(pattern=pattern)(model)
    for module, zeroed in zip(model, expected, strict=True):
        assert torch.equal(module.weight, zeroed)
    assert plan.sparse == {'0.weight': pattern, '1.weight': pattern}
    assert plan.provenance['sparsity'] == count / size


def test_a_transposed_convolution_reads_along_its_first_dimension():
    model = nn.Sequential(nn.ConvTranspose2d(4, 3, 2))
    expected = reference(model[0].weight.detach().transpose(0, 1))
    WeightPruner(pattern='2:4')(model)
    assert torch.equal(model[0].weight.transpose(0, 1), expected)


def test_a_layer_that_the_pattern_does_not_divide_stays_dense():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(8, 2))
    plan = WeightPruner(pattern='2:4')(model)
    assert list(plan.sparse) == ['1.weight']
    assert (model[0].weight != 0).all()
    with pytest.raises(ValueError, match='layer that 2:4 divides'):
        WeightPruner(pattern='2:4')(model[0])


def test_a_weight_is_narrow_on_either_side():
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Linear(4, 8), nn.Linear(8, 8))
    assert narrow_weights(model, 8) == ['0.weight', '1.weight']
    assert narrow_weights(model, 4) == []


@pytest.mark.parametrize('sparsity', [0, 0.3, 0.5, 0.9])
def test_every_row_loses_exactly_its_part(sparsity):
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 4, 3))
    with torch.no_grad():
        for module in model:  # with ties
            module.weight.copy_(torch.randint(-2, 3, module.weight.shape) * 2)
            module.weight[module.weight == 0] = 1
    WeightPruner(sparsity, scope='row')(model)
    rows = [model[0].weight.flatten(1), model[1].weight.transpose(0, 1)]
    for weight in (rows[0], rows[1].flatten(1)):
        asked = int(sparsity * weight.shape[1] + 0.5)
        assert ((weight == 0).sum(1) == asked).all()


def test_a_criterion_decides_which_weights_go():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 3.0]])
    taylor = WeightPruner(0.5, importance=dict(type='mmprune.Taylor'))
    taylor(model, [torch.tensor([[9.0, 1.0]])], lambda m, x: m(x).sum())
    assert model[0].weight.tolist() == [[1, 0]]  # 1 * 9 against 3 * 1
    drawn = nn.Sequential(nn.Linear(64, 1))
    plan = WeightPruner(0.5, importance=Random(seed=2))(drawn)
    assert int((drawn[0].weight == 0).sum()) == 32
    assert plan.provenance['importance'] == 'Random(seed=2)'


def test_weight_requests_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match='BNScale scores whole units'):
        WeightPruner(0.5, importance=BNScale())
    with pytest.raises(ValueError, match='2:4 removes 0.5 .* sparsity=0.3'):
        WeightPruner(0.3, pattern='2:4')
    for pattern in ('4:2', '2-4', '0:4', '4:4', ''):
        with pytest.raises(ValueError, match='a pattern is N:M'):
            WeightPruner(pattern=pattern)
    with pytest.raises(ValueError, match='give a sparsity or a pattern'):
        WeightPruner()
    with pytest.raises(ValueError, match='needs a loss'):
        WeightPruner(0.5, importance=dict(type='mmprune.Taylor'))(
            nn.Linear(2, 2)
        )
    assert WeightPruner(0.5, pattern='2:4').sparsity == 0.5


def test_an_integer_mean_does_not_round_a_score():
    class Counts:
        needs = frozenset()

        def __call__(self, group, stats):
            return torch.arange(group.size)

    plan = StructuredPruner(0.5, importance=Counts(), scope='layer')(
        *CASES['vit']()[::2]
    )
    assert plan.keep['blocks.0.mlp'] == list(range(384, 768))


# ------------------------------------------------------- rounding or a fault


def neurons(norm: str = '') -> PruneGroup:
    written = [Slice('0.weight'), Slice('0.bias')]
    written += [Slice('1.weight'), Slice('1.bias')] if norm else []
    return PruneGroup(
        'hidden', 'neuron', 256, tuple(written), (Slice('2.weight', 1),)
    )


def test_rounding_of_values_that_cancel_out_is_no_fault():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 4))
    keep = list(range(0, 256, 2))
    with torch.no_grad():
        model[0].bias.fill_(1e4)
        model[2].bias.copy_(-1e4 * model[2].weight[:, keep].sum(1))
    plan = PruningPlan((neurons(),), {'hidden': keep})
    data = torch.randn(5, 8)

    def forward(model):
        # As detectors do: a cast of their own, a deep copy, a write in place.
        out = copy.deepcopy(model(data.to(torch.float32)))
        found = torch.zeros(5, 4)
        found[:, 1:] = out[:, 1:]
        return found

    assert _difference(model, plan, forward) > TOLERANCE
    assert masked_difference(model, plan, forward) < 1e-6
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_small_fault_stays_one_in_float64():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 256), nn.LayerNorm(256), nn.Linear(256, 4)
    )
    plan = PruningPlan((neurons('norm'),), {'hidden': list(range(255))})
    data = torch.randn(5, 8)
    found = masked_difference(model, plan, lambda model: model(data))
    assert TOLERANCE < found < 0.1
