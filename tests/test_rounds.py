"""The options of iterative pruning, also under their earlier names."""

import re

import pytest
import torch

from mmprune.importance import Activation, Magnitude, Saliency
from mmprune.loops.earlier_names import (
    NAMES,
    renamed,
    renamed_result,
    renamed_state,
)
from mmprune.loops.rounds import Rounds
from mmprune.pruners import StructuredPruner, WeightPruner
from mmprune.sparsifying import DecayPenalty

UNITS = dict(
    type='mmprune.StructuredPruner', sparsity=dict(head=0.5, neuron=0.2)
)
WEIGHTS = dict(type='mmprune.WeightPruner', sparsity=0.6)


def rounds(**options) -> Rounds:
    return Rounds(**{'rounds': 3, 'epochs': 2, 'pruner': UNITS, **options})


def earlier(**options) -> Rounds:
    """The options that earlier names mean."""
    found, _ = renamed({'epochs': 2, 'pruning_times': 3, **options})
    return Rounds(**found)


def test_granularities_have_their_own_sparsity():
    found = rounds()
    assert found.events == 2
    assert found.sparsity(0) == dict(head=0, neuron=0)
    assert found.sparsity(1)['head'] == pytest.approx(1 - 0.5**0.5)
    assert found.sparsity(2) == dict(head=0.5, neuron=0.2)
    single = rounds(pruner=WEIGHTS)
    assert [single.sparsity(0), single.sparsity(2)] == [0, 0.6]


def test_a_schedule_may_be_any():
    linear = rounds(
        rounds=5, schedule=dict(type='mmprune.LinearSchedule'), pruner=WEIGHTS
    )
    assert linear.sparsity(2) == pytest.approx(0.3)
    at_once = rounds(schedule=dict(type='mmprune.OneShot'), pruner=WEIGHTS)
    assert [at_once.sparsity(k) for k in (0, 1, 2)] == [0, 0.6, 0.6]
    assert rounds(rounds=1).sparsity(0) == dict(head=0, neuron=0)


@pytest.mark.parametrize(
    ('wrong', 'says'),
    [
        (dict(rounds=0), 'rounds must be a whole number'),
        (dict(epochs=1.5), 'epochs must be a whole number'),
        (dict(rewind_epoch=3), 'epoch of round 0, which has 2; found 3'),
        (dict(pruner=dict(WEIGHTS, sparsity=1.0)), 'in [0, 1), found 1.0'),
        (dict(pruner=dict(WEIGHTS, sparsity='x')), "in [0, 1), found 'x'"),
        (
            dict(pruner=dict(UNITS, sparsity=0.5, target='macs')),
            'counts units, not macs',
        ),
        (dict(decay=dict(shape='steep')), "found 'steep'"),
        (dict(regrow=True, pruner=WEIGHTS), 'use a StructuredPruner with'),
        (
            dict(regrow=True, pruner=dict(UNITS, importance=Saliency())),
            'found StructuredPruner with Saliency',
        ),
        (dict(regrow=True, rewind=False), 'gives units that come back'),
    ],
)
def test_a_wrong_option_is_refused_in_a_sentence(wrong, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        rounds(**wrong)


def test_an_unknown_option_is_answered_with_a_near_one():
    with pytest.raises(ValueError, match="did you mean 'rewind_epoch'"):
        Rounds.check_names(dict(epochs=1, rewind_epochs=2))


def test_another_run_is_told_by_the_options_that_differ():
    text = 'pruner.sparsity.head=0.5 then, 0.6 now; rounds=3 then, 4 now'
    other = dict(UNITS, sparsity=dict(head=0.6, neuron=0.2))
    mine = rounds(rounds=4, pruner=other)
    with pytest.raises(ValueError) as caught:
        mine.check_same(rounds())
    found = str(caught.value).split('options: ')[1].split('; resume')[0]
    assert sorted(found.split('; ')) == sorted(text.split('; '))
    mine.check_same(rounds(rounds=4, pruner=other))


# ------------------------------------------------------------- earlier names


def test_earlier_names_are_translated_and_noted():
    options = dict(
        epochs=60,
        pruning_times=16,
        rate=0.6,
        mlp_prune_ratio=0.4,
        struct='rsst',
        RST_schedule='x^2',
        reg_granularity_prune=3.0,
        reg_scope='epoch',
        criteria='l2',
        include_out=True,
        normalize='l2-layer',
        sorting_mode='layer-wise',
        fillback_rate=0.1,
        min_neurons_per_layer=4,
        rate_schedule='cubic',
        prune_type='pt',
    )
    found, notes = renamed(options)
    assert 'pruning_times is now rounds' in notes and len(notes) == 15
    plan = Rounds(**found)
    assert (plan.rounds, plan.epochs) == (16, 60)
    assert plan.built_pruner == StructuredPruner(
        sparsity=dict(head=0.6, neuron=0.4),
        importance=Magnitude(p=2, reduce='sum', sides='both'),
        scope='layer',
        min_keep=dict(head=1, neuron=4),
        normalize='norm',
        fill_back=0.1,
        strict=False,
    )
    assert plan.penalty == DecayPenalty(3.0, 'power', 2, 'epoch', 'auto')
    assert plan.schedules['head'].final == 0.6
    assert type(plan.schedules['head']).__name__ == 'CubicSchedule'
    assert plan.require_pretrained


def test_the_neurons_follow_the_rate_where_nothing_else_is_said():
    assert earlier(rate=0.4).built_pruner.sparsity == both(0.4)
    found = earlier(rate=0.4, mlp_prune_ratio=0.1).built_pruner.sparsity
    assert found == dict(head=0.4, neuron=0.1)
    only = earlier(vit_prune_target='mlp', mlp_prune_ratio=0.1)
    assert only.built_pruner.sparsity == dict(neuron=0.1)


def both(value):
    return dict(head=value, neuron=value)


def test_an_earlier_name_changes_just_what_it_names():
    found, _ = renamed(
        dict(rounds=3, epochs=2, pruner=dict(UNITS, scope='layer'), rate=0.4)
    )
    assert found['pruner'] == dict(
        UNITS, scope='layer', sparsity=dict(head=0.4, neuron=0.2)
    )
    found, _ = renamed(
        dict(decay=dict(strength=2.0), pruner=UNITS, exponents=3)
    )
    assert found['decay'] == dict(strength=2.0, exponent=3)
    assert UNITS['sparsity'] == dict(head=0.5, neuron=0.2)


def test_options_without_earlier_names_are_left_alone():
    options = dict(rounds=3, epochs=2, pruner=UNITS)
    assert renamed(options) == (options, [])


def test_single_weights_under_the_earlier_name():
    plan = earlier(vit_structured=False, rate=0.6)
    assert plan.built_pruner == WeightPruner(0.6)
    by_layer = earlier(vit_structured=False, sorting_mode='layer-wise')
    assert by_layer.built_pruner == WeightPruner(0.7, scope='layer')


@pytest.mark.parametrize(
    ('criteria', 'criterion'),
    [
        ('magnitude', Magnitude(reduce='sum', sides='producers')),
        ('act_l2', Activation(p=2)),
        ('saliency', Saliency(sides='producers')),
        (dict(type='mmprune.Magnitude', p=2), Magnitude(p=2)),
    ],
)
def test_a_criterion_under_the_earlier_name(criteria, criterion):
    assert earlier(criteria=criteria).built_pruner.importance == criterion


@pytest.mark.parametrize(
    ('wrong', 'says'),
    [
        (dict(rate=1.0), 'in [0, 1), found 1.0'),
        (dict(mlp_prune_ratio=-0.1), 'in [0, 1), found -0.1'),
        (dict(pruning_times=0), 'rounds must be a whole number'),
        (dict(min_heads_per_layer=0), 'min_heads_per_layer must be'),
        (dict(struct='regroup'), 'struct must be one of refill, rsst'),
        (
            dict(struct='rsst', RST_schedule='x^4'),
            'RST_schedule must be one of x, x^2',
        ),
        (dict(rate='most'), "in [0, 1), found 'most'"),
        (dict(struct='rsst', exponents=0), 'exponent of the decay must be'),
        (dict(fillback_rate=2), 'fill_back is a fraction'),
        (dict(prune_type='lt', rewind_epoch=1), "prune_type='rewind_lt'"),
        (dict(prune_type='rewind_lt', rewind_epoch=3), 'which has 2'),
        (dict(allow_regrowth=True, criteria='remain'), 'with Remain'),
        (dict(vit_structured=False, fillback_rate=0.5), 'single weights'),
    ],
)
def test_a_wrong_earlier_option_is_refused_in_a_sentence(wrong, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        earlier(**wrong)


def test_every_earlier_name_has_a_successor():
    values = dict(pruning_times=2, prune_type='lt', criteria='magnitude')
    assert len(NAMES) == 22
    for name, value in values.items():
        _, notes = renamed({name: value})
        assert notes == [f'{name} is now {NAMES[name]}']


def test_an_earlier_checkpoint_goes_on():
    shapes = dict(a=(3,), b=(2, 5))
    bits = torch.tensor([0b00100001, 0b10], dtype=torch.uint8)
    state = dict(
        finished_rounds=2,
        rounds=dict(gone=dict(a=[1], b=bits), going=dict(a=[2], b=bits * 0)),
        going_norm=0.5,
        rewind_checksum='abc',
        options=dict(epochs=2, pruning_times=3, rate=0.4),
        results=[
            dict(state=0, layers=[dict(group='a', units=3, gone=1, going=1)])
        ],
    )
    shapes = {k: torch.Size(v) for k, v in shapes.items()}
    found = renamed_state(state, shapes)
    from mmprune.packing import unpack_masks

    pruned, _ = unpack_masks(found['growth']['pruned'])
    assert pruned['a'].tolist() == [False, True, False]
    # the first weight was the lowest bit
    assert pruned['b'].flatten().nonzero().flatten().tolist() == [0, 5, 9]
    decaying, _ = unpack_masks(found['growth']['decaying'])
    assert decaying['a'].tolist() == [False, False, True]
    assert found['decaying_norm'] == 0.5
    assert Rounds(**found['options']).built_pruner.sparsity == both(0.4)
    assert found['results'] == [
        dict(round=0, layers=[dict(group='a', units=3, pruned=1, decaying=1)])
    ]
    assert renamed_result(found['results'][0]) == found['results'][0]
    assert renamed_state(found, shapes) == found


def test_a_default_that_is_written_out_is_no_difference():
    """A checkpoint of the earlier version holds every option."""
    given = dict(epochs=2, pruning_times=3, rate=0.4, struct='rsst')
    every = dict(
        given,
        mlp_prune_ratio=None,
        vit_structured=True,
        vit_prune_target='both',
        criteria='magnitude',
        include_out=False,
        normalize=None,
        sorting_mode='global',
        fillback_rate=0.0,
        unit_counts='schedule',
        rate_schedule='geometric',
        allow_regrowth=False,
        min_heads_per_layer=1,
        min_neurons_per_layer=1,
        rewind=True,
        prune_type='lt',
        rewind_epoch=0,
        reg_granularity_prune=1.0,
        RST_schedule='exp_custom_exponents',
        exponents=4,
        reg_scope='state',
        penalty_mode='auto',
    )
    now = Rounds(
        rounds=3,
        epochs=2,
        pruner=dict(
            type='mmprune.StructuredPruner',
            sparsity=both(0.4),
            importance=dict(
                type='mmprune.Magnitude', reduce='sum', sides='producers'
            ),
            normalize=None,
        ),
        decay=dict(strength=1.0),
    )
    stored = Rounds(**renamed(every)[0])
    for mine in (earlier(**given), now):
        mine.check_same(stored)
    weights = dict(vit_structured=False, struct='refill')
    earlier(rate=0.6, **weights).check_same(
        Rounds(**renamed({**every, **weights, 'rate': 0.6})[0])
    )


@pytest.mark.parametrize(
    'schedule',
    [dict(begin=0), dict(type='mmprune.LinearSchedule', final=0.9)],
)
def test_a_schedule_without_type_or_with_a_sparsity_is_refused(schedule):
    with pytest.raises(ValueError, match='schedule takes a type'):
        rounds(schedule=schedule)


def test_an_earlier_name_beside_one_number_names_one_kind():
    one = dict(type='mmprune.StructuredPruner', sparsity=0.5)
    found, _ = renamed(dict(pruner=one, mlp_prune_ratio=0.3))
    assert found['pruner']['sparsity'] == dict(head=0.5, neuron=0.3)
    found, _ = renamed(
        dict(pruner=one, vit_prune_target='mlp', mlp_prune_ratio=0.3)
    )
    assert found['pruner']['sparsity'] == dict(neuron=0.3)


def test_an_earlier_checkpoint_whose_units_stay_dense_now_is_refused():
    state = dict(
        rounds=dict(gone=dict(a=[1]), going=dict(a=[])),
        options=dict(epochs=2, pruning_times=3),
    )
    with pytest.raises(ValueError, match=r"has pruned \['a'\], which stay"):
        renamed_state(state, {})
