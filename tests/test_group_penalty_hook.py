"""Group lasso by proximal steps: exact zeros that surgery can remove."""

import copy

import pytest
import torch
from tiny_training import (
    TinyMLP,
    config,
    differing,
    final,
    run,
    run_with_crash,
    sparse_checkpoint,
)
from torch import nn

from mmprune.adapters import ffn_groups
from mmprune.groups import PruneGroup, Slice
from mmprune.masks import unit_norms
from mmprune.pruners import plan_from_zeros
from mmprune.sparsifying.penalty import shrink_units, trained_producers
from mmprune.surgery import apply_plan

SEED = dict(type='mmprune.SeedHook')
EMA = dict(type='EMAHook', momentum=0.1)


def penalty(weight: float = 0.1, **kwargs) -> dict:
    return dict(type='mmprune.GroupPenaltyHook', weight=weight, **kwargs)


def long(tmp_path, *hooks, **changes):
    return config(
        tmp_path,
        epochs=8,
        custom_hooks=[SEED, *hooks],
        param_scheduler=None,
        **changes,
    )


def dead_units(model) -> dict[str, list[int]]:
    plan = plan_from_zeros(model, ffn_groups(model))
    return {g.name: plan.removed(g) for g in plan.groups}


def test_a_proximal_step_by_hand():
    # Two units of weights (3, 4) and (0.3, 0.4), each with a bias of 0.
    tensors = {
        'w': torch.tensor([[3.0, 4.0], [0.3, 0.4]]),
        'b': torch.tensor([0.0, 0.0]),
    }
    parts = [Slice('w'), Slice('b')]
    assert unit_norms(tensors, parts, 2).tolist() == [5, 0.5]
    # 5 - 0.5 * sqrt(3) of 5 is left of the first.
    shrink_units(tensors, parts, 2, 0.5)
    left = 1 - 0.5 * 3**0.5 / 5
    assert tensors['w'][0].tolist() == pytest.approx([3 * left, 4 * left])
    assert tensors['w'][1].tolist() == [0, 0]
    # What is zero stays zero, without NaN.
    shrink_units(tensors, parts, 2, 100.0)
    assert tensors['w'].tolist() == [[0, 0], [0, 0]]


def test_units_of_fused_tensors_shrink_together():
    # Two heads of two positions each in a fused qkv of 12.
    tensors = {'qkv': torch.ones(12, 1)}
    tensors['qkv'][[0, 1, 4, 5, 8, 9]] = 0.1
    shrink_units(tensors, [Slice('qkv', block=2, copies=3)], 2, 0.2)
    assert tensors['qkv'].flatten().tolist() == pytest.approx(
        [0, 0, 0.8, 0.8] * 3
    )


def test_units_become_zero_and_surgery_removes_them(tmp_path):
    runner = run(long(tmp_path, penalty()))
    model = runner.model.eval()
    dead = dead_units(model)
    assert 0 < sum(map(len, dead.values())) < 16
    for name, units in dead.items():
        assert model.get_parameter(f'{name}.weight')[units].abs().max() == 0
        assert model.get_parameter(f'{name}.bias')[units].abs().max() == 0
    small = copy.deepcopy(model)
    apply_plan(small, plan_from_zeros(model, ffn_groups(model)))
    x = torch.randn(5, 4)
    assert torch.allclose(small(x), model(x), atol=1e-6)


def test_without_the_penalty_no_unit_is_zero(tmp_path):
    with pytest.raises(ValueError, match='has a unit that is zero'):
        dead_units(run(long(tmp_path)).model)


def test_the_average_has_the_zeros_too(tmp_path):
    runner = run(long(tmp_path, EMA, penalty()))
    averaged = TinyMLP()
    averaged.load_state_dict(final(tmp_path)['state_dict'])
    assert dead_units(averaged) == dead_units(runner.model)
    live = runner.model.net[0].weight
    assert not torch.equal(averaged.net[0].weight, live)


def test_an_accumulated_step_is_one_step(tmp_path, monkeypatch):
    calls = []

    def count(tensors, parts, size, amount):
        calls.append(amount)

    name = 'mmprune.hooks.group_penalty_hook.shrink_units'
    monkeypatch.setattr(name, count)
    wrapper = dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=4)
    run(long(tmp_path, penalty(0.5), optim_wrapper=wrapper))
    # 32 iterations in steps of 4, two groups, 0.1 x 0.5.
    assert calls == pytest.approx([0.05] * (8 * 2))


def test_masked_weights_stay_zero(tmp_path):
    masks = sparse_checkpoint(tmp_path / 'sparse.pth')
    runner = run(
        long(
            tmp_path / 'run',
            dict(type='mmprune.MaskHook'),
            penalty(0.1),
            load_from=str(tmp_path / 'sparse.pth'),
        )
    )
    for name, mask in masks.items():
        assert runner.model.get_parameter(name)[~mask].abs().max() == 0


def test_a_resumed_run_ends_bit_identical(tmp_path):
    run(long(tmp_path / 'whole', EMA, penalty()))
    run_with_crash(long(tmp_path / 'crashed', EMA, penalty()), after=23)
    one, other = final(tmp_path / 'whole'), final(tmp_path / 'crashed')
    assert differing(one, other) == []


def test_frozen_writers_leave_a_group_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    names = ('0.weight', '1.weight', '1.bias', '1.running_mean')
    group = PruneGroup('c', 'channel', 2, tuple(Slice(n) for n in names))
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    found = trained_producers(group, tensors)
    assert [part.tensor for part in found] == list(names[:3])
    model[1].bias.requires_grad_(False)
    assert trained_producers(group, tensors) == ()


@pytest.mark.parametrize(
    ('hook', 'message'),
    [
        (dict(weight=0), 'weight must be positive'),
        (dict(protect=['net']), 'none of the 2 groups'),
        (dict(groups='mmprune.oak_groups'), "no function 'mmprune.oak_"),
    ],
)
def test_what_cannot_be_penalised_is_refused(tmp_path, hook, message):
    with pytest.raises(ValueError, match=message):
        run(long(tmp_path, {**penalty(), **hook}))
