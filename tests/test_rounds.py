"""Iterative pruning as arithmetic, against numbers worked out by hand."""

import math
import re

import pytest
import torch
from torch import nn

from mmprune.groups import PruneGroup, Slice
from mmprune.rounds import (
    RewindPoint,
    RoundOptions,
    UnitRounds,
    WeightRounds,
    cumulative_sparsity,
    fill_back,
    num_gone,
    penalty_strength,
)
from mmprune.rounds.arithmetic import units_of_elements
from mmprune.rounds.regions import (
    UnitRegion,
    WeightRegion,
    clear,
    norm,
    unit_regions,
)
from mmprune.rounds.scores import element_mask, unit_scores


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


def options(**kwargs) -> RoundOptions:
    return RoundOptions(**{'epochs': 2, 'pruning_times': 3, **kwargs})


def scores(**values: list[float]) -> dict[str, torch.Tensor]:
    """Scores of all groups; those that are not given are 1, 2, ..."""
    found = {}
    for group in groups():
        key = group.name.replace('.', '_')
        given = values.get(key, range(1, group.size + 1))
        found[group.name] = torch.tensor(list(given), dtype=torch.float64)
    return found


# ------------------------------------------------------------- how much goes


def test_the_geometric_schedule_of_the_guide():
    table = (
        '.077 .148 .214 .275 .331 .382 .430 .474 .514 .552 .586 .618 .648 '
        '.675 .700'
    )
    found = [cumulative_sparsity(0.7, k, 15) for k in range(1, 16)]
    assert [f'{s:.3f}'[1:] for s in found] == table.split()
    assert found[-1] == 0.7


def test_every_geometric_event_takes_the_same_part_of_the_survivors():
    alive = [1 - cumulative_sparsity(0.7, k, 15) for k in range(16)]
    parts = [1 - b / a for a, b in zip(alive, alive[1:], strict=False)]
    assert max(parts) == pytest.approx(min(parts), abs=1e-12)
    assert parts[0] == pytest.approx(0.0771, abs=5e-5)


@pytest.mark.parametrize(
    ('schedule', 'expected'),
    [
        # R = .5, events 0, 1, 2, 3, 4 of 4
        ('geometric', [0, 1 - 0.5**0.25, 1 - 0.5**0.5, 1 - 0.5**0.75, 0.5]),
        ('constant', [0, 0.5, 0.5, 0.5, 0.5]),
        ('per_round', [0, 0.5, 0.75, 0.875, 0.9375]),
        ('linear', [0, 0.125, 0.25, 0.375, 0.5]),
        ('cubic', [0, 0.2890625, 0.4375, 0.4921875, 0.5]),
    ],
)
def test_a_rate_schedule_follows_its_formula_at_five_points(
    schedule, expected
):
    found = [cumulative_sparsity(0.5, k, 4, schedule) for k in range(5)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_last_counts_are_exactly_as_asked():
    final = cumulative_sparsity(0.7, 15, 15)
    assert num_gone(final, 72) == 50
    assert num_gone(final, 18432) == 12902


def test_filling_back_keeps_a_part_of_what_would_go():
    assert [fill_back(10, f) for f in (0, 0.29, 0.5, 1)] == [10, 8, 5, 0]
    assert fill_back(100, 0.29) == 71  # 0.29 * 100 is 28.999...
    assert num_gone(0.7, 10, fillback_rate=0.5) == 4


def test_refill_turns_alive_elements_into_units():
    # 25 alive elements of 10 per unit fill 2.5 of 4 units
    assert units_of_elements(25, 10, 4) == 2
    assert units_of_elements(25, 10, 4, fillback_rate=0.5) == 3  # 2.5 + .75
    assert units_of_elements(25, 10, 4, fillback_rate=1) == 4


@pytest.mark.parametrize(
    ('schedule', 'formula'),
    [
        ('x', lambda t: 2 * t),
        ('x^2', lambda t: 2 * t * t),
        ('x^3', lambda t: 2 * t * t * t),
        ('exp', lambda t: 2 * math.expm1(t) / math.expm1(1)),
        ('exp_custom', lambda t: 2 * math.expm1(t) / math.expm1(1)),
        (
            'exp_custom_exponents',
            lambda t: 2 * math.expm1(t**4) / math.expm1(1),
        ),
    ],
)
def test_a_penalty_follows_its_formula_at_five_points(schedule, formula):
    for t in (0, 0.25, 0.5, 0.75, 1):
        found = penalty_strength(schedule, t, final=2, exponent=4)
        assert found == pytest.approx(formula(t), abs=1e-12)


def test_the_penalty_of_the_guide():
    found = [
        penalty_strength('exp_custom_exponents', t, 1, 4)
        for t in (0.25, 0.5, 0.75, 0.9, 1)
    ]
    expected = [0.0023, 0.0375, 0.217, 0.540, 1]
    assert found == pytest.approx(expected, abs=5e-4)


# ------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ('wrong', 'says'),
    [
        (dict(rate=1.0), 'rate is the fraction that goes'),
        (dict(mlp_prune_ratio=-0.1), 'mlp_prune_ratio is the fraction'),
        (dict(pruning_times=0), 'pruning_times must be a whole number'),
        (dict(min_heads_per_layer=0), 'min_heads_per_layer must be'),
        (dict(struct='regroup'), 'struct must be one of refill, rsst'),
        (dict(RST_schedule='x^4'), 'RST_schedule must be one of x, x^2'),
        (dict(rate='most'), "rate must be a number, found 'most'"),
        (dict(exponents=None), 'exponents must be a number, found None'),
        (dict(fillback_rate=2), 'fillback_rate is a fraction'),
        (dict(exponents=0), 'exponents be positive'),
        (dict(rewind_epoch=1), "needs prune_type='rewind_lt'"),
        (dict(prune_type='rewind_lt', rewind_epoch=3), 'has 2 epochs'),
        (dict(allow_regrowth=True, criteria='remain'), "'magnitude' or 'l2'"),
        (dict(allow_regrowth=True, rewind=False), 'gives units'),
        (dict(vit_structured=False, fillback_rate=0.5), 'single weights'),
    ],
)
def test_a_wrong_option_is_refused_in_a_sentence(wrong, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        options(**wrong)


def test_an_unknown_option_is_answered_with_a_near_one():
    with pytest.raises(ValueError, match="did you mean 'pruning_times'"):
        RoundOptions.check_names(dict(epochs=1, prunning_times=2))


def test_neurons_have_their_own_ratio():
    both = options(rate=0.5, mlp_prune_ratio=0.2)
    assert both.sparsity('head', 2) == 0.5
    assert both.sparsity('neuron', 2) == 0.2
    assert options(rate=0.5).sparsity('neuron', 2) == 0.5


# ------------------------------------------------------------- which ones go


def test_the_lowest_of_all_layers_go_and_each_layer_keeps_one():
    rounds = UnitRounds(groups(), options(rate=0.5, pruning_times=2))
    found = rounds.choose(
        None,
        scores(
            a_attn=[1, 2],
            b_attn=[8, 9],
            a_mlp=[7, 1, 6],
            b_mlp=[2, 3, 9],
        ),
        1,
    )
    # two of four heads: both of layer a are lowest, its best has to stay
    assert found['a.attn'] == [0] and found['b.attn'] == [0]
    # three of six neurons: 1, 2 and 3
    assert found['a.mlp'] == [1] and found['b.mlp'] == [0, 1]


def test_every_layer_keeps_the_least_that_is_asked():
    rounds = UnitRounds(
        groups(),
        options(
            rate=0.5,
            mlp_prune_ratio=1 / 3,
            pruning_times=2,
            min_neurons_per_layer=2,
        ),
    )
    found = rounds.choose(None, scores(a_mlp=[1, 2, 3], b_mlp=[7, 8, 9]), 1)
    assert found['a.mlp'] == [0] and found['b.mlp'] == [0]


def test_layer_wise_takes_the_same_part_of_every_layer():
    rounds = UnitRounds(
        groups(),
        options(rate=0.6, sorting_mode='layer-wise', pruning_times=2),
    )
    found = rounds.choose(None, scores(a_mlp=[3, 1, 2]), 1)
    assert found['a.mlp'] == [1, 2] and found['b.mlp'] == [0, 1]
    # 0.6 of two heads rounds to one
    assert found['a.attn'] == [0] and found['b.attn'] == [0]


def test_masks_are_nested_unless_regrowth_is_allowed():
    for regrowth in (False, True):
        rounds = UnitRounds(
            groups(), options(rate=0.5, allow_regrowth=regrowth)
        )
        first = rounds.choose(None, scores(a_mlp=[1, 5, 6]), 1)
        assert first['a.mlp'] == [0]
        rounds.begin(first)
        rounds.end()
        # in the second round unit 0 would be the best of all
        later = rounds.choose(None, scores(a_mlp=[9, 1, 2]), 2)
        assert (0 in later['a.mlp']) is not regrowth
        assert sum(map(len, (later['a.mlp'], later['b.mlp']))) == 3


def test_masks_are_nested_where_a_criterion_is_negative():
    rounds = UnitRounds(groups(), options(rate=0.5))
    first = rounds.choose(None, scores(a_mlp=[-9, 5, 6]), 1)
    rounds.begin(first)
    later = rounds.choose(
        None, scores(a_mlp=[9, -7, -8], b_mlp=[-5, -6, -7]), 2
    )
    assert first['a.mlp'] == [0] and 0 in later['a.mlp']


def test_the_counts_follow_the_schedule_after_each_event():
    asked = options(rate=0.7, mlp_prune_ratio=0.6, pruning_times=6)
    rounds = UnitRounds(
        [
            PruneGroup(f'{kind}{i}', kind, size, (Slice('w'),))
            for kind, size in (('head', 6), ('neuron', 96))
            for i in range(12)
        ],
        asked,
    )
    torch.manual_seed(0)
    before = 0
    for event in range(1, 6):
        drawn = {g.name: torch.rand(g.size) for g in rounds.groups}
        rounds.begin(rounds.choose(None, drawn, event))
        rows = rounds.rows()
        for kind, final, total in (('head', 0.7, 72), ('neuron', 0.6, 1152)):
            gone = sum(r['gone'] for r in rows if r['granularity'] == kind)
            formula = (1 - (1 - final) ** (event / 5)) * total
            assert gone == math.floor(formula + 0.5)
        assert sum(r['gone'] for r in rows) > before
        before = sum(r['gone'] for r in rows)
    assert all(r['gone'] < r['units'] for r in rows)


def test_fillback_keeps_the_best_of_the_dropped():
    rounds = UnitRounds(
        groups(), options(rate=0.5, fillback_rate=0.5, pruning_times=2)
    )
    found = rounds.choose(None, scores(a_mlp=[1, 2, 9], b_mlp=[3, 8, 9]), 1)
    # 1, 2 and 3 would go, one comes back: the best of them
    assert found['a.mlp'] == [0, 1] and found['b.mlp'] == []


def test_only_the_target_is_pruned():
    assert {
        g.granularity
        for g in UnitRounds(groups(), options(vit_prune_target='mlp')).groups
    } == {'neuron'}
    with pytest.raises(ValueError, match="'head' fits none of the 1 groups"):
        UnitRounds(groups()[1:2], options(vit_prune_target='head'))


def test_a_model_without_heads_to_prune_is_not_pruned_by_half():
    found = [g for g in groups() if g.granularity == 'neuron']
    with pytest.raises(ValueError, match="set vit_prune_target='mlp'"):
        UnitRounds(found, options())
    assert UnitRounds(found, options(vit_prune_target='mlp')).groups == found


def test_a_ratio_that_would_empty_a_layer_is_refused_at_the_start():
    with pytest.raises(ValueError, match='3 of 4 would go, but 1 in each of'):
        UnitRounds(groups(), options(rate=0.75))


def test_rsst_keeps_units_alive_for_one_more_round():
    rounds = UnitRounds(groups(), options(rate=0.5, struct='rsst'))
    rounds.begin(rounds.choose(None, scores(a_mlp=[1, 5, 6]), 1))
    assert rounds.gone['a.mlp'] == [] and rounds.going['a.mlp'] == [0]
    rounds.end()
    assert rounds.gone['a.mlp'] == [0] and rounds.going['a.mlp'] == []


def test_the_state_goes_through_plain_data():
    rounds = UnitRounds(groups(), options(rate=0.5, struct='rsst'))
    rounds.begin(rounds.choose(None, scores(), 1))
    other = UnitRounds(groups(), options(rate=0.5, struct='rsst'))
    other.load_state_dict(rounds.state_dict())
    assert other.going == rounds.going and other.gone == rounds.gone
    with pytest.raises(ValueError, match='prunes other groups'):
        UnitRounds(groups()[:2], options(rate=0.5)).load_state_dict(
            rounds.state_dict()
        )


def test_unstructured_rounds_zero_exactly_the_smallest_weights():
    model = TwoLayers()
    rounds = WeightRounds(
        groups(), options(rate=0.5, vit_structured=False), model
    )
    total = sum(m.numel() for m in rounds.gone.values())
    for event, sparsity in ((1, 1 - 0.5**0.5), (2, 0.5)):
        before = {k: m.clone() for k, m in rounds.gone.items()}
        rounds.begin(rounds.choose(model, None, event))
        gone = sum(int(m.sum()) for m in rounds.gone.values())
        assert gone == math.floor(sparsity * total + 0.5)
        for name, mask in before.items():
            assert not (mask & ~rounds.gone[name]).any()
        clear(rounds.held(model))
        alive = torch.cat(
            [model.get_parameter(n)[~m].abs() for n, m in rounds.gone.items()]
        )
        assert alive.numel() == total - gone
    other = WeightRounds(
        groups(), options(rate=0.5, vit_structured=False), model
    )
    other.load_state_dict(rounds.state_dict())
    for name, mask in rounds.gone.items():
        assert torch.equal(mask, other.gone[name])


# -------------------------------------------------------------------- scores


def test_a_head_counts_its_rows_and_a_neuron_its_row():
    model = TwoLayers()
    with torch.no_grad():
        model.a_qkv.weight.copy_(torch.arange(12.0)[:, None].expand(12, 3))
        model.a_fc1.weight.copy_(
            torch.tensor([[1.0, -2, 0], [0, 3, 4], [0, 0, 1]])
        )
        model.a_proj.weight.fill_(1)
        model.a_fc2.weight.fill_(2)
    parts = groups()[:2]
    found = unit_scores(model, parts, options())
    # head 0: rows 0, 1 (q), 4, 5 (k), 8, 9 (v), three columns each
    assert found['a.attn'].tolist() == [3 * 27, 3 * 39]
    assert found['a.mlp'].tolist() == [3, 7, 1]
    found = unit_scores(model, parts, options(include_out=True))
    assert found['a.attn'].tolist() == [81 + 6, 117 + 6]
    assert found['a.mlp'].tolist() == [9, 13, 7]
    found = unit_scores(model, parts, options(criteria='l2'))
    assert found['a.mlp'].tolist() == [5**0.5, 5, 1]
    found = unit_scores(model, parts, options(normalize='mean'))
    assert found['a.mlp'].sum() == pytest.approx(3)
    found = unit_scores(model, parts, options(normalize='l2-layer'))
    assert found['a.mlp'].norm() == pytest.approx(1)


def test_remain_counts_the_elements_that_stay():
    model = TwoLayers()
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
        model.a_fc1.weight.copy_(
            torch.tensor([[1.0, 2, 3], [4, 0, 0], [5, 6, 0]])
        )
    parts = groups()[1:2]
    keep = element_mask(model, parts, 0.75)  # of 18 elements 14 (13.5) go
    assert sum(int(m.sum()) for m in keep.values()) == 4
    found = unit_scores(model, parts, options(criteria='remain'), 0.75)
    assert found['a.mlp'].tolist() == [1, 1, 2]  # 3; 4; 5 and 6


def test_elements_decide_how_many_units_a_layer_keeps():
    model = TwoLayers()
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
        # six of nine elements alive: they fill two rows of three
        model.a_fc1.weight.copy_(
            torch.tensor([[9.0, 9, 0], [9, 9, 0], [9, 9, 0]])
        )
        model.b_fc1.weight.fill_(9)
    rounds = UnitRounds(
        groups(),
        options(
            rate=0.5,
            mlp_prune_ratio=21 / 36,
            pruning_times=2,
            unit_counts='elements',
            vit_prune_target='mlp',
        ),
    )
    found = rounds.choose(model, scores(), 1)
    assert len(found['a.mlp']) == 1 and len(found['b.mlp']) == 0


class Branch(nn.Module):
    """One group of two neurons with known outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(1, 2), nn.Linear(2, 1)
        with torch.no_grad():
            self.fc1.weight.copy_(torch.tensor([[1.0], [-2.0]]))
            self.fc1.bias.zero_()
            self.fc2.weight.copy_(torch.tensor([[3.0, 5.0]]))
            self.fc2.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(x))


BRANCH = PruneGroup(
    'mlp',
    'neuron',
    2,
    (Slice('fc1.weight'), Slice('fc1.bias')),
    (Slice('fc2.weight', 1),),
)


@pytest.mark.parametrize(
    ('criteria', 'expected'),
    [
        ('act_l1', [2, 4]),  # mean |x w| of x = 1, 3
        ('act_l2', [5**0.5, 20**0.5]),
        # d(sum of outputs) / d fc1 = fc2 * sum of x: |1*3*4|, |-2*5*4|
        ('saliency', [12, 40]),
        (dict(type='mmprune.Magnitude', p=1), [2, 3.5]),
    ],
)
def test_a_criterion_gives_the_number_of_a_hand(criteria, expected):
    found = unit_scores(
        Branch(),
        [BRANCH],
        options(criteria=criteria),
        batch=torch.tensor([[1.0], [3.0]]),
        loss_fn=lambda model, batch: model(batch).sum(),
    )
    assert found['mlp'].tolist() == pytest.approx(expected)


# ------------------------------------------------------------------- regions


def test_clearing_a_unit_removes_it_from_the_output():
    model = Branch()
    clear(unit_regions(model, [BRANCH], {'mlp': [1]}))
    assert model.fc1.weight.flatten().tolist() == [1, 0]
    assert model.fc2.weight.flatten().tolist() == [3, 0]
    assert model(torch.ones(1, 1)).item() == 3


@pytest.mark.parametrize('kind', ['unit', 'weight'])
def test_a_pulled_step_of_sgd_is_the_one_of_a_hand(kind):
    weight = nn.Parameter(torch.tensor([[2.0, 4.0]]))
    if kind == 'unit':
        region = UnitRegion(weight, 1, torch.tensor([1]))
    else:
        region = WeightRegion(weight, torch.tensor([[False, True]]))
    (3 * weight).sum().backward()
    region.pull(0.5)
    torch.optim.SGD([weight], lr=0.1).step()
    # 2 - .1 * 3 and 4 - .1 * (3 + .5 * 4)
    assert weight.flatten().tolist() == pytest.approx([1.7, 3.5])
    region.shrink(0.5)
    assert weight.flatten().tolist() == pytest.approx([1.7, 1.75])
    assert norm([region]) == pytest.approx(1.75)


# ------------------------------------------------------------------ rewinding


def test_training_does_not_change_the_rewind_point():
    model = Branch()
    point = RewindPoint.of(model)
    with torch.no_grad():
        model.fc1.weight.add_(1)
    point.verify()
    point.restore(model)
    assert model.fc1.weight.flatten().tolist() == [1, -2]
    point.weights['fc1.weight'].add_(1)
    with pytest.raises(ValueError, match='rewind point has changed'):
        point.restore(model)


def test_a_rewind_point_is_a_checkpoint_like_any_other(tmp_path):
    model = Branch()
    point = RewindPoint.of(model)
    point.save(tmp_path / 'init.pth', dict(epoch=0))
    found = torch.load(tmp_path / 'init.pth', weights_only=True)
    model.load_state_dict(found['state_dict'])
    loaded = RewindPoint.load(tmp_path / 'init.pth')
    assert loaded.checksum == point.checksum
    found['state_dict']['fc1.bias'] += 1
    torch.save(found, tmp_path / 'init.pth')
    with pytest.raises(ValueError, match='has been changed since'):
        RewindPoint.load(tmp_path / 'init.pth')


def test_a_rewind_point_of_another_model_is_refused():
    point = RewindPoint.of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match='init.pth does not fit the model'):
        point.check_fits(Branch(), 'init.pth')
