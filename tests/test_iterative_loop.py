"""Rounds of training, pruning and rewinding through a real Runner."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmprune.adapters import vit_groups
from mmprune.calibration import surviving_weights
from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.models import build_model, load_model
from mmprune.plan import PruningPlan
from mmprune.sparsifying.runner_parts import averaged_models

ROOT = Path(__file__).resolve().parents[1]
HEADS, NEURONS = 2 * 4, 2 * 64
numbers = iter(range(1000))


def config(folder: Path, **train_cfg) -> Config:
    """A run of three rounds of two epochs of four iterations."""
    images = dict(
        type='mmprune.Digits', pipeline=[dict(type='mmprune.ToTensor')]
    )
    return Config(
        dict(
            default_scope='mmengine',
            work_dir=str(folder),
            experiment_name=f'{folder.name}_{next(numbers)}',
            model=dict(
                type='mmprune.TimmClassifier',
                model='vit_tiny_patch16_224',
                img_size=8,
                patch_size=4,
                in_chans=1,
                num_classes=10,
                embed_dim=16,
                depth=2,
                num_heads=4,
                drop_rate=0.1,
                data_preprocessor=dict(
                    type='ImgDataPreprocessor', mean=[127.5], std=[127.5]
                ),
            ),
            # Earlier names: tests/test_rounds.py has the present ones.
            train_cfg={
                'type': 'mmprune.IterativePruningLoop',
                'epochs': 2,
                'pruning_times': 3,
                'rate': 0.5,
                'latency_runs': 0,
                **train_cfg,
            },
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.1, momentum=0.9)
            ),
            param_scheduler=[dict(type='LinearLR', by_epoch=False)],
            train_dataloader=dict(
                batch_size=16,
                num_workers=0,
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='DefaultSampler', shuffle=True),
                dataset={
                    **images,
                    'split': 'train',
                    'num_images': 64,
                    'pipeline': [
                        dict(type='mmprune.PadCrop', padding=1),
                        *images['pipeline'],
                    ],
                },
            ),
            val_dataloader=dict(
                batch_size=32,
                num_workers=0,
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset={**images, 'split': 'val', 'num_images': 32},
            ),
            val_cfg=dict(),
            val_evaluator=dict(type='mmprune.Accuracy'),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=100),
                checkpoint=dict(type='mmprune.SafeCheckpointHook', interval=1),
            ),
            custom_hooks=[dict(type='mmprune.SeedHook')],
            randomness=dict(seed=3),
        )
    )


class Watch(Hook):
    """Keeps what a test wants to see, and kills the run where it says."""

    priority = 'LOWEST'

    def __init__(self, kill_at=None, kill_epoch=None) -> None:
        self.kill_at, self.kill_epoch = kill_at, kill_epoch
        self.starts, self.rates, self.losses = {}, [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.kill_at:
            raise KeyboardInterrupt
        if runner.iter % 8 == 0:
            self.starts[runner.iter // 8] = snapshot(runner)
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=()):
        self.losses.append(outputs['loss'].item())

    def after_train_epoch(self, runner):
        if runner.epoch == self.kill_epoch:
            raise KeyboardInterrupt


def units_of(masks: dict) -> dict[str, list[int]]:
    """Group name -> units."""
    return {n: m.nonzero().flatten().tolist() for n, m in masks.items()}


def snapshot(runner) -> dict:
    """Weights, what is pruned, and the size of the optimizer's state."""
    return dict(
        weights={k: v.clone() for k, v in runner.model.state_dict().items()},
        pruned=units_of(runner.train_loop.growth.pruned),
        decaying=units_of(runner.train_loop.growth.decaying),
        state=len(runner.optim_wrapper.optimizer.state),
    )


def train(cfg: Config, **watch) -> tuple[Runner, Watch]:
    """Runs the config to its end, or to where it is killed."""
    seen = Watch(**watch)
    cfg = cfg.copy()
    cfg.experiment_name = f'{cfg.experiment_name}_{next(numbers)}'
    runner = Runner.from_cfg(cfg)
    runner.register_hook(seen)
    killed = watch.get('kill_at') or watch.get('kill_epoch')
    if killed:
        with pytest.raises(KeyboardInterrupt):
            runner.train()
    else:
        runner.train()
    return runner, seen


def results(folder: Path) -> dict:
    return json.loads((folder / 'rounds.json').read_text())


def pruned_of(entry: dict, kind: str) -> int:
    layers = entry['layers']
    return sum(x['pruned'] for x in layers if x['granularity'] == kind)


def unit_values(weights: dict, group, units: list[int]) -> torch.Tensor:
    """All weights and biases of units, in one row."""
    return torch.cat(
        [
            weights[part.tensor]
            .index_select(part.dim, part.index(units, group.size))
            .flatten()
            for part in group.slices
        ]
    )


# --------------------------------------------------------------- the rounds


@pytest.fixture(scope='module')
def refill(tmp_path_factory):
    """One plain run, looked at by several tests."""
    folder = tmp_path_factory.mktemp('refill')
    torch.manual_seed(0)
    runner, seen = train(config(folder, pruning_times=4))
    return folder, runner, seen


def test_each_round_has_the_sparsity_of_the_schedule(refill):
    folder, _, seen = refill
    entries = results(folder)['rounds']
    assert [e['round'] for e in entries] == [0, 1, 2, 3]
    for k, entry in enumerate(entries):
        sparsity = 1 - 0.5 ** (k / 3)
        for kind, total in (('head', HEADS), ('neuron', NEURONS)):
            expected = math.floor(sparsity * total + 0.5)
            assert pruned_of(entry, kind) == expected
            assert entry['asked'][kind] == pytest.approx(sparsity)
        alone = sum(len(units) for units in seen.starts[k]['pruned'].values())
        assert alone == sum(x['pruned'] for x in entry['layers'])
    assert pruned_of(entries[-1], 'neuron') == 64
    assert all(x['pruned'] < x['units'] for x in entries[-1]['layers'])


def test_masks_are_nested(refill):
    _, _, seen = refill
    for before, after in zip(
        list(seen.starts.values()), list(seen.starts.values())[1:], strict=0
    ):
        for name, units in before['pruned'].items():
            assert set(units) <= set(after['pruned'][name])


def test_survivors_start_from_the_rewind_point_and_the_others_from_zero(
    refill,
):
    folder, runner, seen = refill
    point = load_checkpoint_file(folder / 'rewind_point.pth')['state_dict']
    groups = list(vit_groups(runner.model))
    assert len(groups) == 4
    for number, start in seen.starts.items():
        for group in groups:
            gone = start['pruned'][group.name]
            alive = [i for i in range(group.size) if i not in gone]
            assert torch.equal(
                unit_values(start['weights'], group, alive),
                unit_values(point, group, alive),
            )
            if gone:
                assert not unit_values(start['weights'], group, gone).any()
                assert unit_values(point, group, gone).any()
        untouched = 'blocks.0.attn.proj.bias'
        assert torch.equal(start['weights'][untouched], point[untouched])
        assert number == 0 or start['state'] == 0


def test_the_units_with_the_smallest_trained_weights_go(refill):
    folder, runner, seen = refill
    trained = load_checkpoint_file(folder / 'epoch_2.pth')['state_dict']
    # the rows of q, k and v of each head of both layers
    sums = {
        (layer, head): sum(
            trained[f'blocks.{layer}.attn.qkv.weight'][
                part * 16 + head * 4 : part * 16 + head * 4 + 4
            ]
            .abs()
            .sum()
            .item()
            for part in range(3)
        )
        for layer in (0, 1)
        for head in range(4)
    }
    lowest = sorted(sums, key=sums.get)[:2]
    found = [
        (layer, head)
        for layer in (0, 1)
        for head in seen.starts[1]['pruned'][f'blocks.{layer}.attn']
    ]
    assert sorted(lowest) == sorted(found)


def test_what_is_gone_stays_zero_and_all_else_is_trained(refill):
    folder, runner, _ = refill
    weights = load_checkpoint_file(folder / 'epoch_8.pth')['state_dict']
    point = load_checkpoint_file(folder / 'rewind_point.pth')['state_dict']
    gone = units_of(runner.train_loop.growth.pruned)
    assert sum(map(len, gone.values())) == 4 + 64
    for group in vit_groups(runner.model):
        units = gone[group.name]
        alive = [i for i in range(group.size) if i not in units]
        if units:
            assert not unit_values(weights, group, units).any()
        trained = unit_values(weights, group, alive)
        moved = trained != unit_values(point, group, alive)
        assert moved.float().mean() > 0.9


def test_every_round_warms_up_again(refill):
    _, _, seen = refill
    rates = seen.rates
    assert len(rates) == 32
    assert [rates[0], rates[7]] == pytest.approx([0.1 / 3, 0.1])
    for start in (8, 16, 24):
        assert rates[start : start + 8] == pytest.approx(rates[:8])


def test_the_end_exports_the_small_model(refill):
    folder, runner, _ = refill
    checkpoint = load_checkpoint_file(folder / 'pruned.pth')
    assert checkpoint['meta']['dataset_meta']['classes'][3] == '3'
    plan = PruningPlan.load(folder / 'plan.json')
    assert PruningPlan.load(folder / 'pruned.pth') == plan
    # width 16: a head of 4 has 3 * 4 rows with bias and 4 columns of proj,
    # a neuron a row with its bias and a column
    found = results(folder)['models']
    lost = 4 * (12 * 17 + 4 * 16) + 64 * (16 + 1 + 16)
    assert found['dense']['params'] - found['structured']['params'] == lost
    # tokens: 4 patches and the class; attention 2 * 5 * 5 * 4 per head
    lost = 4 * (5 * 16 * 16 + 200) + 64 * 5 * 32
    assert found['dense']['macs'] - found['structured']['macs'] == lost
    assert results(folder)['masked_difference'] <= 1e-5
    small = load_model(runner.cfg, folder / 'pruned.pth')
    masked = build_model(runner.cfg).eval()
    epoch = load_checkpoint_file(folder / 'epoch_8.pth')
    masked.load_state_dict(epoch['state_dict'])
    images = torch.randn(3, 1, 8, 8)
    assert torch.allclose(small(images), masked(images), atol=1e-6)
    assert small.blocks[0].attn.qkv.weight.shape[0] < 48


def test_the_report_has_tables_and_curves(refill):
    folder, *_ = refill
    report = json.loads((folder / 'report.json').read_text())
    rounds, layers = report['sections']
    assert rounds['table']['columns'][:2] == ['round', 'Acc@1']
    assert rounds['series'][0]['x'] == [0, 1, 2, 3]
    assert len(layers['table']['rows']) == 4
    assert report['kinds'][0]['units'] in (HEADS, NEURONS)


def test_the_log_has_the_lines_that_the_guide_greps(refill):
    folder, *_ = refill
    (log,) = folder.glob('*/*.log')
    text = log.read_text()
    for number in range(4):
        assert f'pruning state: {number} of 4' in text
        assert f'pruning state: {number} finished' in text
    assert text.count('* Acc@1: ') == 4


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


# ------------------------------------------------------------------- resume


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint_file(folder / 'pruned.pth')['state_dict']


def full(folder: Path, **options) -> Config:
    """Four rounds with all that has a state."""
    cfg = config(folder, pruning_times=4, struct='rsst', **options)
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.dtype = 'bfloat16'
    cfg.optim_wrapper.accumulative_counts = 3
    cfg.optim_wrapper.clip_grad = dict(max_norm=1.0)
    return cfg


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """Lets mixed precision run where no GPU is; the scaler then rests."""
    name = 'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available'
    monkeypatch.setattr(name, lambda: True)


@pytest.mark.filterwarnings('ignore:.*GradScaler.*')
def test_a_killed_and_resumed_run_ends_bit_identical(tmp_path, amp_on_cpu):
    train(full(tmp_path / 'whole'))
    expected = final(tmp_path / 'whole')
    # in the second epoch of round 2, and between rounds 1 and 2 after the
    # checkpoint was written
    for name, kill in (
        ('inside', dict(kill_at=2 * 8 + 6)),
        ('between', dict(kill_epoch=3)),
    ):
        cfg = full(tmp_path / name)
        train(cfg, **kill)
        assert not (tmp_path / name / 'pruned.pth').exists()
        cfg.resume = True
        runner, _ = train(cfg)
        found = final(tmp_path / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), (name, key)
        whole, again = results(tmp_path / 'whole'), results(tmp_path / name)
        for one, two in zip(whole['rounds'], again['rounds'], strict=True):
            for key in ('layers', 'metrics', 'residual'):
                assert one[key] == two[key]


@pytest.mark.parametrize('criteria', ['act_l1', 'saliency'])
def test_units_are_scored_on_the_same_batch_after_a_kill(tmp_path, criteria):
    options = dict(criteria=criteria, pruning_times=2)
    train(config(tmp_path / 'whole', **options))
    cfg = config(tmp_path / 'killed', **options)
    # the checkpoint of round 0 is written, its units are not chosen yet
    train(cfg, kill_epoch=1)
    cfg.resume = True
    train(cfg)
    expected, found = final(tmp_path / 'whole'), final(tmp_path / 'killed')
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_resuming_with_other_options_is_refused(tmp_path):
    train(config(tmp_path), kill_at=9)
    cfg = config(tmp_path, rate=0.6)
    cfg.resume = True
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ValueError, match='sparsity.head=0.5 then, 0.6 now'):
        runner.train()


def test_resuming_without_the_rewind_point_is_refused(tmp_path):
    train(config(tmp_path), kill_at=9)
    point = tmp_path / 'rewind_point.pth'
    data = torch.load(point, weights_only=True)
    point.unlink()
    cfg = config(tmp_path)
    cfg.resume = True
    with pytest.raises(ValueError, match='rewind_point.pth, which is gone'):
        Runner.from_cfg(cfg).train()
    data['state_dict']['head.bias'] += 1
    del data['meta']['rewind_checksum']
    torch.save(data, point)
    cfg.experiment_name += '_again'
    with pytest.raises(ValueError, match='is not the rewind point of the'):
        Runner.from_cfg(cfg).train()


# -------------------------------------------------------------- distributed


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


WORKER = """
import sys
sys.path.insert(0, {root!r})
import torch
import mmprune
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.runner import Runner
# mmengine's own start of a process group asks for a CUDA device
torch.distributed.init_process_group('gloo')
runner = Runner.from_cfg(Config.fromfile(sys.argv[1]))
runner.train()
torch.save(
    dict(
        pruned=runner.train_loop.growth.pruned,
        weights=runner.model.module.state_dict(),
    ),
    f'{{runner.work_dir}}/rank{{get_rank()}}.pth',
)
"""


def test_two_ranks_prune_the_same_units(tmp_path):
    # activations of a batch differ from rank to rank
    cfg = config(tmp_path, criteria='act_l1', pruning_times=2)
    cfg.launcher = 'pytorch'
    # mmengine's default wrapper asks for CUDA devices
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', device_ids=None
    )
    cfg.dump(tmp_path / 'config.py')
    script = tmp_path / 'worker.py'
    script.write_text(WORKER.format(root=str(ROOT)))
    command = [
        *(sys.executable, '-m', 'torch.distributed.run'),
        *('--standalone', '--nproc-per-node=2'),
        *(str(script), str(tmp_path / 'config.py')),
    ]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [
        torch.load(tmp_path / f'rank{i}.pth', weights_only=True)
        for i in (0, 1)
    ]
    pruned = [units_of(rank['pruned']) for rank in ranks]
    assert pruned[0] == pruned[1]
    assert sum(map(len, pruned[0].values())) == (HEADS + NEURONS) // 2
    for name, value in ranks[0]['weights'].items():
        assert torch.equal(value, ranks[1]['weights'][name]), name
