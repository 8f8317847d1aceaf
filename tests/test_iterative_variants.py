"""Other kinds of rounds: RSST, single weights, and where training starts."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner
from tiny_rounds import (
    HEADS,
    config,
    pruned_of,
    results,
    train,
    unit_values,
    units_of,
)

from mmprune.adapters import vit_groups
from mmprune.calibration import surviving_weights
from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.plan import PruningPlan
from mmprune.sparsifying.runner_parts import averaged_models

# --------------------------------------------------------------------- RSST


def test_rsst_pulls_what_goes_to_zero_and_removes_it_then(tmp_path):
    cfg = config(
        tmp_path, struct='rsst', reg_granularity_prune=4.0, RST_schedule='x'
    )
    cfg.optim_wrapper.optimizer.momentum = 0.0
    cfg.param_scheduler = None
    runner, seen = train(cfg)
    entries = results(tmp_path)['rounds']
    assert entries[0]['residual'] is None
    # eight steps of 1 - lr * 4 t; the loss itself moves the weights a little
    expected = math.prod(1 - 0.1 * 4 * t / 8 for t in range(1, 9))
    for entry in entries[1:]:
        assert entry['residual'] == pytest.approx(expected, rel=0.2)
    assert [pruned_of(e, 'head') for e in entries] == [0, 2, 4]
    groups = {g.name: g for g in vit_groups(runner.model)}
    second = seen.starts[1]
    assert sum(map(len, second['decaying'].values())) == 2 + 37
    assert not any(second['pruned'].values())
    point = load_checkpoint_file(tmp_path / 'rewind_point.pth')['state_dict']
    for name, units in second['decaying'].items():
        if units:  # alive when the round begins
            assert torch.equal(
                unit_values(second['weights'], groups[name], units),
                unit_values(point, groups[name], units),
            )
            assert set(units) <= set(seen.starts[2]['pruned'][name])


def rsst_steps(folder: Path, strength: float, **optimizer):
    """Weights before and after the first step of round 1."""
    cfg = config(
        folder,
        struct='rsst',
        reg_granularity_prune=strength,
        RST_schedule='x',
        reg_scope='epoch',
    )
    cfg.optim_wrapper.optimizer = dict(**optimizer)
    cfg.param_scheduler = None
    return train(cfg, kill_at=9)


@pytest.mark.parametrize('kind', ['SGD', 'Adam'])
def test_the_first_penalised_step_is_the_one_of_a_hand(tmp_path, kind):
    runner, seen = rsst_steps(tmp_path / 'with', 8.0, type=kind, lr=0.01)
    plain, _ = rsst_steps(tmp_path / 'without', 0.0, type=kind, lr=0.01)
    start = seen.starts[1]
    # x, in the first of four iterations: 8 * 1/4 = 2, times lr .01
    checked = 0
    for group in vit_groups(runner.model):
        going = start['decaying'][group.name]
        stay = [i for i in range(group.size) if i not in going]
        with_penalty = runner.model.state_dict()
        without = plain.model.state_dict()
        before = unit_values(start['weights'], group, going)
        expected = unit_values(without, group, going) - 0.01 * 2 * before
        found = unit_values(with_penalty, group, going)
        assert torch.allclose(found, expected, atol=1e-7)
        checked += len(going) and (before.abs().max() > 0).item()
        assert torch.equal(
            unit_values(with_penalty, group, stay),
            unit_values(without, group, stay),
        )
    assert checked


def test_without_rewinding_survivors_keep_what_they_learned(tmp_path):
    _, seen = train(config(tmp_path, rewind=False), kill_at=9)
    trained = load_checkpoint_file(tmp_path / 'epoch_2.pth')['state_dict']
    start = seen.starts[1]
    name = 'head.weight'
    assert torch.equal(start['weights'][name], trained[name])
    assert start['state'] == 0


# ----------------------------------------------------------- other variants


def test_weights_alone_are_pruned_without_vit_structured(tmp_path):
    cfg = config(tmp_path, vit_structured=False, rate=0.6)
    cfg.optim_wrapper.clip_grad = dict(max_norm=1.0)
    runner, _ = train(cfg)
    entries = results(tmp_path)['rounds']
    total = 2 * (48 * 16 + 16 * 16 + 2 * 64 * 16)
    counts = [pruned_of(entry, 'weight') for entry in entries]
    expected = [0, math.floor((1 - 0.4**0.5) * total + 0.5), 0.6 * total]
    assert counts == [*expected[:2], math.floor(expected[2] + 0.5)]
    weights = load_checkpoint_file(tmp_path / 'pruned.pth')['state_dict']
    masks = runner.train_loop.growth.pruned
    for name, mask in masks.items():
        assert torch.equal(weights[name] == 0, mask)
        state = runner.optim_wrapper.optimizer.state
        momentum = state[runner.model.get_parameter(name)]['momentum_buffer']
        assert not momentum[mask].any()
    plan = PruningPlan.load(tmp_path / 'pruned.pth')
    assert set(plan.sparse) == set(masks)


def test_protected_weights_stay_dense_in_every_round(tmp_path):
    cfg = config(tmp_path, pruning_times=2, epochs=1)
    cfg.train_cfg = dict(
        type='mmprune.IterativePruningLoop',
        rounds=2,
        epochs=1,
        latency_runs=0,
        pruner=dict(
            type='mmprune.WeightPruner', sparsity=0.5, protect=['blocks.0']
        ),
    )
    train(cfg)
    layers = {x['group'] for x in results(tmp_path)['rounds'][-1]['layers']}
    assert layers and not any('blocks.0' in name for name in layers)


def test_the_hook_of_the_export_is_refused_elsewhere(tmp_path):
    cfg = config(tmp_path)
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1)
    cfg.custom_hooks.append(dict(type='mmprune.ExportHook'))
    with pytest.raises(ValueError, match='goes with IterativePruningLoop'):
        Runner.from_cfg(cfg).train()


def test_masks_hold_where_an_activation_of_zero_is_not_zero(tmp_path):
    # a neuron without weights gives 1/2, and the column that reads it moves
    cfg = config(tmp_path, pruning_times=2, rate=0.5)
    cfg.model.act_layer = 'sigmoid'
    runner, _ = train(cfg)
    gone = units_of(runner.train_loop.growth.pruned)['blocks.0.mlp']
    assert gone
    columns = runner.model.blocks[0].mlp.fc2.weight[:, gone]
    assert not columns.any()
    assert results(tmp_path)['masked_difference'] <= 1e-5


def test_an_average_of_weights_starts_anew_in_each_round(tmp_path):
    cfg = config(tmp_path)
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    runner, _ = train(cfg)
    (average,) = averaged_models(runner)
    gone = units_of(runner.train_loop.growth.pruned)
    for group in vit_groups(runner.model):
        units = gone[group.name]
        if units:
            values = unit_values(average.module.state_dict(), group, units)
            assert not values.any()
    assert average.steps == 8
    # what was validated is what is shipped
    shipped = load_checkpoint_file(tmp_path / 'pruned.pth')['state_dict']
    mean = average.module.state_dict()
    assert torch.equal(shipped['head.weight'], mean['head.weight'])
    assert not torch.equal(
        shipped['head.weight'], runner.model.state_dict()['head.weight']
    )


def test_the_rewind_point_may_lie_inside_the_first_round(tmp_path):
    _, seen = train(
        config(tmp_path, prune_type='rewind_lt', rewind_epoch=1), kill_at=9
    )
    after_one = load_checkpoint_file(tmp_path / 'epoch_1.pth')['state_dict']
    name = 'head.weight'
    assert torch.equal(seen.starts[1]['weights'][name], after_one[name])
    assert not torch.equal(seen.starts[0]['weights'][name], after_one[name])


def test_an_init_file_is_where_training_starts_not_where_it_rewinds(tmp_path):
    path = tmp_path / 'init.pth'
    options = dict(prune_type='rewind_lt', rewind_epoch=1, init=str(path))
    _, first = train(config(tmp_path / 'a', **options), kill_at=9)
    name = 'head.weight'
    written = load_checkpoint_file(path)['state_dict'][name]
    assert torch.equal(written, first.starts[0]['weights'][name])
    cfg = config(tmp_path / 'b', **options)
    train(cfg, kill_at=9)
    path.unlink()
    cfg.resume = True
    _, seen = train(cfg)
    after_one = load_checkpoint_file(tmp_path / 'b' / 'epoch_1.pth')
    start = seen.starts[2]['weights'][name]
    assert torch.equal(start, after_one['state_dict'][name])


def test_an_init_file_is_written_once_and_read_by_the_next_run(tmp_path):
    path = tmp_path / 'inits' / 'init.pth'
    _, first = train(config(tmp_path / 'a', init=str(path)), kill_at=1)
    written = path.read_bytes()
    cfg = config(tmp_path / 'b', init=str(path))
    cfg.randomness = dict(seed=77)
    _, second = train(cfg, kill_at=1)
    for name, value in first.starts[0]['weights'].items():
        assert torch.equal(value, second.starts[0]['weights'][name])
    assert path.read_bytes() == written


def test_a_negative_number_of_timed_runs_is_refused(tmp_path):
    runner = Runner.from_cfg(config(tmp_path, latency_runs=-1))
    with pytest.raises(ValueError, match='latency_runs must be a whole'):
        runner.train()


def test_pt_insists_on_pretrained_weights(tmp_path):
    runner = Runner.from_cfg(config(tmp_path, prune_type='pt'))
    with pytest.raises(ValueError, match='starts from pretrained weights'):
        runner.train()


@pytest.mark.parametrize('criteria', ['act_l2', 'saliency', 'remain'])
def test_other_criteria_run_through_the_rounds(tmp_path, criteria):
    train(config(tmp_path, criteria=criteria, pruning_times=2, epochs=1))
    entries = results(tmp_path)['rounds']
    assert pruned_of(entries[-1], 'head') == HEADS // 2


def test_remaining_weights_of_neurons_follow_their_own_ratio(
    tmp_path, monkeypatch
):
    asked = []

    def spy(tensors, groups, sparsity):
        asked.append(sparsity)
        return surviving_weights(tensors, groups, sparsity)

    monkeypatch.setattr('mmprune.calibration.surviving_weights', spy)
    cfg = config(tmp_path, criteria='remain', vit_prune_target='mlp', rate=0.0)
    cfg.train_cfg.update(mlp_prune_ratio=0.5, pruning_times=2)
    train(cfg)
    assert asked == [0.5]
