"""A growth prunes more and more of one model, counts worked out by hand."""

import math

import pytest
import torch
from torch import nn

from mmprune.adapters import ffn_groups
from mmprune.calibration import calibrate
from mmprune.groups import PruneGroup, Slice
from mmprune.masks import clear
from mmprune.pruners import (
    StructuredPruner,
    WeightPruner,
    prunable_weights,
)
from mmprune.schedule import ExponentialSchedule
from mmprune.sparsifying import Growth
from mmprune.statistics import Statistics


class TwoLayers(nn.Module):
    """Two blocks of two heads (of width 2) and three neurons."""

    def __init__(self) -> None:
        super().__init__()
        for block in ('a', 'b'):
            self.add_module(f'{block}_qkv', nn.Linear(3, 12))
            self.add_module(f'{block}_proj', nn.Linear(4, 3))
            self.add_module(f'{block}_fc1', nn.Linear(3, 3))
            self.add_module(f'{block}_fc2', nn.Linear(3, 3))


def groups() -> list[PruneGroup]:
    found = []
    for block in ('a', 'b'):
        found += [
            PruneGroup(
                f'{block}.attn',
                'head',
                2,
                (
                    Slice(f'{block}_qkv.weight', 0, block=2, copies=3),
                    Slice(f'{block}_qkv.bias', 0, block=2, copies=3),
                ),
                (Slice(f'{block}_proj.weight', 1, block=2),),
            ),
            PruneGroup(
                f'{block}.mlp',
                'neuron',
                3,
                (Slice(f'{block}_fc1.weight'), Slice(f'{block}_fc1.bias')),
                (Slice(f'{block}_fc2.weight', 1),),
            ),
        ]
    return found


class Given:
    """A criterion that reads its scores from the statistics."""

    needs = frozenset()

    def __call__(self, group, stats):
        return stats.tensors[group.name]


def given(**values: list[float]) -> Statistics:
    """Scores of all groups; those that are not given are 1, 2, ..."""
    found = {}
    for group in groups():
        key = group.name.replace('.', '_')
        score = values.get(key, range(1, group.size + 1))
        found[group.name] = torch.tensor(list(score), dtype=torch.float64)
    return Statistics(found)


def growth(head=0.5, neuron=0.5, parts=None, **options) -> Growth:
    """Of heads and neurons by raw scores that a test gives."""
    state = {k: options.pop(k) for k in ('decay', 'regrow') if k in options}
    pruner = StructuredPruner(
        dict(head=head, neuron=neuron),
        importance=Given(),
        normalize=None,
        **options,
    )
    return Growth(pruner, TwoLayers(), parts or groups(), **state)


def units(grown: Growth, which: str = 'pruned') -> dict[str, list[int]]:
    """Group name -> units."""
    masks = getattr(grown, which)
    return {n: m.nonzero().flatten().tolist() for n, m in masks.items()}


def both(sparsity: float) -> dict[str, float]:
    return dict(head=sparsity, neuron=sparsity)


def test_the_lowest_of_all_layers_go_and_each_layer_keeps_one():
    grown = growth()
    grown.advance(
        both(0.5),
        given(a_attn=[1, 2], b_attn=[8, 9], a_mlp=[7, 1, 6], b_mlp=[2, 3, 9]),
    )
    # two of four heads: both of layer a are lowest, its best has to stay;
    # three of six neurons: 1, 2 and 3
    assert units(grown) == {
        'a.attn': [0],
        'b.attn': [0],
        'a.mlp': [1],
        'b.mlp': [0, 1],
    }


def test_every_layer_keeps_the_least_that_is_asked():
    grown = growth(min_keep=dict(head=1, neuron=2))
    grown.advance(
        dict(head=0.5, neuron=1 / 3), given(a_mlp=[1, 2, 3], b_mlp=[7, 8, 9])
    )
    assert units(grown)['a.mlp'] == [0] and units(grown)['b.mlp'] == [0]


def test_layer_scope_takes_the_same_part_of_every_layer():
    grown = growth(scope='layer', strict=False)
    grown.advance(both(0.6), given(a_mlp=[3, 1, 2]))
    assert units(grown)['a.mlp'] == [1, 2] and units(grown)['b.mlp'] == [0, 1]
    # 0.6 of two heads rounds to one
    assert units(grown)['a.attn'] == [0] and units(grown)['b.attn'] == [0]


def test_a_layer_that_cannot_lose_so_many_keeps_its_least_if_asked_to():
    with pytest.raises(ValueError, match='lets only 1'):
        growth(scope='layer').advance(both(0.9), given())
    grown = growth(scope='layer', strict=False)
    grown.advance(both(0.9), given())
    assert units(grown)['a.attn'] == [0]


def test_what_is_pruned_never_comes_back_unless_it_may_regrow():
    for regrow in (False, True):
        grown = growth(regrow=regrow)
        grown.advance(both(1 - 0.5**0.5), given(a_mlp=[1, 5, 6]))
        assert units(grown)['a.mlp'] == [0]
        # in the second round unit 0 would be the best of all
        later = given(a_mlp=[9, 1, 2])
        grown.advance(both(0.5), later, restart=later)
        assert (0 in units(grown)['a.mlp']) is not regrow
        assert sum(len(units(grown)[f'{x}.mlp']) for x in 'ab') == 3


def test_nor_where_a_criterion_is_negative():
    grown = growth()
    grown.advance(both(1 - 0.5**0.5), given(a_mlp=[-9, 5, 6]))
    assert units(grown)['a.mlp'] == [0]
    grown.advance(both(0.5), given(a_mlp=[9, -7, -8], b_mlp=[-5, -6, -7]))
    assert 0 in units(grown)['a.mlp']


def test_the_counts_follow_the_schedule_after_each_event():
    parts = [
        PruneGroup(f'{kind}{i}', kind, size, (Slice('w'),))
        for kind, size in (('head', 6), ('neuron', 96))
        for i in range(12)
    ]
    finals = dict(head=0.7, neuron=0.6)
    grown = growth(parts=parts)
    schedules = {k: ExponentialSchedule(0, 5, f) for k, f in finals.items()}
    for event in range(1, 6):
        drawn = Statistics({g.name: torch.rand(g.size) for g in parts})
        grown.advance({k: s(event) for k, s in schedules.items()}, drawn)
        rows = grown.rows()
        for kind, total in (('head', 72), ('neuron', 1152)):
            pruned = sum(r['pruned'] for r in rows if r['granularity'] == kind)
            formula = (1 - (1 - finals[kind]) ** (event / 5)) * total
            assert pruned == math.floor(formula + 0.5)
    assert all(r['pruned'] < r['units'] for r in rows)


def test_fill_back_keeps_the_best_of_those_to_be_removed():
    grown = growth(fill_back=0.5)
    grown.advance(both(0.5), given(a_mlp=[1, 2, 9], b_mlp=[3, 8, 9]))
    # 1, 2 and 3 would be removed, one comes back: the best of them
    assert units(grown)['a.mlp'] == [0, 1] and units(grown)['b.mlp'] == []


def test_a_granularity_without_a_sparsity_stays_dense():
    pruner = StructuredPruner(dict(neuron=0.5))
    grown = Growth(pruner, TwoLayers(), groups())
    assert set(grown.pruned) == {'a.mlp', 'b.mlp'}
    heads = dict(head=0.5)
    with pytest.raises(ValueError, match=r"names \['head'\], but of the 1"):
        Growth(StructuredPruner(heads), TwoLayers(), groups()[1:2])


def test_a_sparsity_that_would_empty_a_layer_is_refused_at_the_start():
    pruner = StructuredPruner(both(0.5))
    grown = Growth(pruner, TwoLayers(), groups())
    with pytest.raises(ValueError, match='3 of 4 units of .* lets only 2'):
        grown.check(both(0.75))
    grown.check(both(0.5))


def test_decaying_units_stay_alive_until_the_decay_is_finished():
    grown = growth(decay=True)
    grown.advance(both(1 - 0.5**0.5), given(a_mlp=[1, 5, 6]))
    assert units(grown)['a.mlp'] == []
    assert units(grown, 'decaying')['a.mlp'] == [0]
    grown.finish_decay()
    assert units(grown)['a.mlp'] == [0]
    assert units(grown, 'decaying')['a.mlp'] == []
    (row,) = (r for r in grown.rows() if r['group'] == 'a.mlp')
    assert (row['units'], row['pruned'], row['decaying']) == (3, 1, 0)


def test_the_state_goes_through_plain_data():
    first = growth(decay=True)
    first.advance(both(0.5), given())
    other = growth(decay=True)
    other.load_state_dict(first.state_dict())
    assert units(other, 'decaying') == units(first, 'decaying')
    assert units(other) == units(first)
    alien = growth(parts=groups()[:2])
    with pytest.raises(ValueError, match='prunes other groups'):
        alien.load_state_dict(first.state_dict())


def test_the_plan_removes_what_is_pruned():
    grown = growth()
    grown.advance(both(0.5), given(a_mlp=[7, 1, 6], b_mlp=[2, 3, 9]))
    plan = grown.plan(dict(why='a test'))
    assert plan.keep['b.mlp'] == [2] and plan.provenance['why'] == 'a test'
    again = growth()
    again.take_plan(plan)
    assert units(again) == units(grown)


def test_the_surviving_weights_decide_how_many_units_a_layer_keeps():
    model = TwoLayers()
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
        # six of nine weights survive: they fill two rows of three
        model.a_fc1.weight.copy_(
            torch.tensor([[9.0, 9, 0], [9, 9, 0], [9, 9, 0]])
        )
        model.b_fc1.weight.fill_(9)
    pruner = StructuredPruner(dict(neuron=0.5), scope='weights')
    grown = Growth(pruner, model, groups())
    sparsity = dict(neuron=21 / 36)
    grown.advance(sparsity, grown.calibrate(sparsity))
    assert len(units(grown)['a.mlp']) == 1 and units(grown)['b.mlp'] == []


def test_exactly_the_smallest_weights_are_pruned():
    model = TwoLayers()
    names = list(prunable_weights(model))
    grown = Growth(WeightPruner(0.5), model, weights=names)
    total = sum(mask.numel() for mask in grown.pruned.values())
    for sparsity in (1 - 0.5**0.5, 0.5):
        before = dict(grown.pruned)
        grown.advance(sparsity, calibrate(model, (), set()))
        pruned, of_all = grown.count()
        assert (pruned, of_all) == (math.floor(sparsity * total + 0.5), total)
        for name, mask in before.items():
            assert not (mask & ~grown.pruned[name]).any()
        clear(grown.regions(model, grown.pruned))
    zeros = sum(int((w == 0).sum()) for w in model.parameters() if w.ndim > 1)
    assert zeros == pruned
    other = Growth(WeightPruner(0.5), model, weights=names)
    other.load_state_dict(grown.state_dict())
    for name, mask in grown.pruned.items():
        assert torch.equal(mask, other.pruned[name])
    assert other.plan().sparse == dict.fromkeys(other.pruned, 'unstructured')


def test_a_growth_without_anything_to_prune_is_refused():
    with pytest.raises(ValueError, match='nothing can be pruned'):
        Growth(WeightPruner(0.5), nn.LayerNorm(3))
    frozen = [PruneGroup('g', 'neuron', 2, (Slice('w'),), dense='frozen')]
    with pytest.raises(ValueError, match='nothing can be pruned'):
        Growth(StructuredPruner(0.5), nn.LayerNorm(3), frozen)
    assert list(ffn_groups(nn.LayerNorm(3))) == []


def test_protected_groups_stay_dense_at_every_step():
    pruner = StructuredPruner(both(0.5), protect=['a.mlp'])
    Growth(pruner, TwoLayers(), groups()).check(both(0.5))
    grown = growth(protect=['a.mlp'])
    grown.advance(both(0.3), given())
    grown.advance(both(0.5), given())
    assert 'a.mlp' not in grown.pruned
    assert grown.plan().provenance['protect'] == ['a.mlp']


def test_a_resumed_growth_knows_how_its_plan_came():
    first = growth()
    first.advance(both(0.5), given())
    other = growth()
    other.load_state_dict(first.state_dict())
    assert other.plan().provenance['scope'] == 'global'
    assert other.plan().provenance.keys() == first.plan().provenance.keys()


def test_a_layer_gets_units_back_where_they_may_regrow():
    model = TwoLayers()
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(1)
    pruner = StructuredPruner(dict(neuron=0.6), scope='weights')
    grown = Growth(pruner, model, groups(), regrow=True)
    with torch.no_grad():
        model.a_fc1.weight.fill_(0.1)
        model.a_fc2.weight.fill_(0.1)
    sparsity = dict(neuron=0.5)
    grown.advance(sparsity, grown.calibrate(sparsity))
    assert len(units(grown)['a.mlp']) == 2
    with torch.no_grad():
        model.a_fc1.weight.fill_(9)
    stats = grown.calibrate(sparsity)
    grown.advance(sparsity, stats, restart=stats)
    assert units(grown)['a.mlp'] == []


@pytest.mark.parametrize('scope', ['global', 'weights'])
def test_weights_of_half_precision_are_compared(scope):
    model = TwoLayers().bfloat16()
    pruner = StructuredPruner(dict(neuron=0.5), scope=scope)
    grown = Growth(pruner, model, groups())
    sparsity = dict(neuron=0.5)
    grown.advance(sparsity, grown.calibrate(sparsity))
    assert 0 < grown.count()[0] < 6
