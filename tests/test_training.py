"""Fine-tuning and retraining of pruned models, on one CPU."""

import json
from collections import OrderedDict

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import LinearLR
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from tiny_fine_tuning import fails, run, same_weights, weights, write_files
from tiny_project import IMAGE

from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.models import load_model
from mmprune.run.training.length import Length
from mmprune.run.training.recipe import (
    FINE_TUNE,
    RETRAIN,
    scale_lr,
    schedule,
    with_safety,
)


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path)


def scalars(folder):
    """The lines that training logged, of all its starts."""
    lines = []
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        lines += map(json.loads, path.read_text().splitlines())
    return lines


# -- the recipes -----------------------------------------------------------


def test_fine_tuning_carries_on_the_epochs_under_the_names_of_the_guide(
    files,
):
    folder = run(files, '--fine-tune') / 'fine_tuned'
    names = {p.name for p in folder.iterdir()}
    assert {f'epoch_{i}.pth' for i in range(13, 19)} <= names
    assert {'tiny_config.py', 'latest.pth', 'start.pth'} <= names
    assert 'epoch_12.pth' not in names
    assert (folder / 'latest.pth').resolve().name == 'epoch_18.pth'


def test_retraining_counts_from_zero(files):
    folder = run(files, '--fine-tune', '--retrain', '--fine-tune-epochs', 2)
    names = {p.name for p in (folder / 'retrained').glob('epoch_*')}
    assert names == {'epoch_1.pth', 'epoch_2.pth'}
    assert not (folder / 'fine_tuned').exists()


def test_a_hook_that_draws_finds_its_visualizer(files, monkeypatch):
    """As every stock config of mmdet has one."""
    monkeypatch.setattr(Visualizer, '_instance_dict', OrderedDict())
    folder = run(
        files,
        *('--fine-tune', '--retrain', '--fine-tune-epochs', 1),
        *(
            '--cfg-options',
            'default_hooks.visualization.type=mmdet.DetVisualizationHook',
        ),
    )
    assert (folder / 'retrained' / 'epoch_1.pth').is_file()


@pytest.mark.parametrize(
    ('flags', 'place', 'factor'),
    [
        (['--fine-tune'], 'fine_tuned', 0.1),
        (['--fine-tune', '--retrain'], 'retrained', 0.5),
    ],
)
def test_the_learning_rate_follows_the_formula(files, flags, place, factor):
    # 6 epochs of 2 iterations: the warm-up is cut to 6 of 12.
    folder = run(files, *flags)
    found = [line['lr'] for line in scalars(folder / place)]
    expected, cosine = [], torch.tensor(3.14159265)
    for i in range(12):
        warm = min(1.0, 0.25 + 0.75 * i / 5)
        slow = (1 + torch.cos(cosine * (i // 2) / 6)).item() / 2
        expected.append(0.1 * factor * warm * slow)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ('recipe', 'steps'), [(FINE_TUNE, 500), (RETRAIN, 1000)]
)
def test_the_warm_up_has_the_length_of_the_guide(recipe, steps):
    (warmup,) = schedule([], recipe, Length(6, 400), 0.5)
    assert warmup.pop('type') == 'LinearLR'
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)
    scheduler = LinearLR(optimizer, **warmup)
    for i in range(steps + 20):
        expected = min(1.0, 1 / 3 + 2 / 3 * i / (steps - 1))
        assert optimizer.param_groups[0]['lr'] == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


def test_other_schedulers_are_stretched_to_the_run():
    given = [
        dict(type='MultiStepLR', by_epoch=True, milestones=[8, 11]),
        dict(type='PolyLR', by_epoch=False, begin=0, end=1200, eta_min=0.01),
        dict(type='CosineAnnealingLR', begin=6, T_max=6, by_epoch=True),
    ]
    warmup, steps, poly, cosine = schedule(
        given, RETRAIN, Length(24, 100), 2.0
    )
    assert warmup['end'] == 1000
    assert (steps['milestones'], steps['end']) == ([16, 22], 24)
    assert (poly['end'], poly['eta_min']) == (2400, 0.005)
    assert (cosine['begin'], cosine['T_max'], cosine['end']) == (12, 12, 24)


def test_a_run_shorter_than_its_warm_up_says_so(files, capsys):
    run(files, '--fine-tune', '--fine-tune-epochs', 1)
    assert 'shortened to 1: the run has only 2' in capsys.readouterr().out


# -- which model -----------------------------------------------------------


def test_unstructured_training_keeps_the_zeros(files):
    folder = run(files, '--mode', 'unstructured', '--fine-tune')
    before = weights(folder / 'tiny_pruned.pth')
    last = load_checkpoint_file(folder / 'fine_tuned' / 'latest.pth')
    after = last['state_dict']
    zero = {n: before[n] == 0 for n in before if (before[n] == 0).any()}
    assert sum(int(z.sum()) for z in zero.values()) > 500
    for name in last['meta']['pruning_plan']['sparse']:
        assert torch.equal(after[name] == 0, before[name] == 0)
    assert not torch.equal(after['one.weight'], before['one.weight'])


def test_both_models_are_trained_on_request(files):
    flags = ['--fine-tune', '--fine-tune-epochs', 1, '--train', 'both']
    folder = run(files, *flags)
    cfg = Config.fromfile(files[0])
    one = load_model(cfg, folder / 'fine_tuned' / 'latest.pth')
    two = load_model(cfg, folder / 'fine_tuned_unstructured' / 'latest.pth')
    assert one.one.out_channels < two.one.out_channels == 32
    assert (two.one.weight == 0).any()


def test_the_trained_one_can_be_chosen(files):
    flags = ['--fine-tune', '--fine-tune-epochs', 1, '--train']
    folder = run(files, *flags, 'unstructured')
    model = load_model(
        Config.fromfile(files[0]), folder / 'fine_tuned' / 'latest.pth'
    )
    assert model.one.out_channels == 32


def test_distillation_pulls_towards_the_dense_model(files):
    """With a large weight only the teacher counts."""
    flags = ['--fine-tune', '--mode', 'structured', '--fine-tune-epochs', 8]
    flags += ['--cfg-options', 'param_scheduler=[]']
    plain = run(files, *flags, out='plain')
    taught = run(files, *flags, '--distill', 3, out='taught')
    cfg = Config.fromfile(files[0])
    dense = load_model(cfg, files[1])
    distances = []
    for folder in (plain, taught):
        last = folder / 'fine_tuned' / 'latest.pth'
        model = load_model(cfg, last)  # as the plain student
        assert type(model) is type(dense)
        found, asked = model(IMAGE), dense(IMAGE)
        distances.append(
            sum((found[k] - asked[k]).square().mean().item() for k in asked)
        )
    assert distances[1] < 0.5 * distances[0]
    logged = scalars(taught / 'fine_tuned')
    assert all('loss_distill_outputs' in line for line in logged)


def test_all_models_are_evaluated_after_training(files):
    folder = run(files, '--fine-tune', '--fine-tune-epochs', 1, '--eval')
    report = json.loads((folder / 'report.json').read_text())
    metrics = report['metrics']
    assert set(metrics) == {
        'dense',
        'unstructured',
        'structured',
        'recovered',
    }
    assert metrics['recovered']['mean'] != metrics['structured']['mean']
    assert '| mean |' in (folder / 'report.md').read_text()


def test_absent_test_data_is_said_and_not_fatal(files, capsys):
    files[0].write_text(
        files[0].read_text()
        + "test_dataloader['dataset'] = dict(type='TinyImages', "
        "folder='/nowhere')\n"
    )
    folder = run(files, '--fine-tune', '--fine-tune-epochs', 1, '--eval')
    assert 'not evaluated: `test_dataloader`' in capsys.readouterr().out
    assert (folder / 'fine_tuned' / 'latest.pth').exists()


# -- the written config ----------------------------------------------------


def test_a_stock_runner_trains_from_the_written_config_where_it_is_moved(
    files, tmp_path
):
    folder = run(files, '--fine-tune', '--fine-tune-epochs', 2)
    moved = tmp_path / 'elsewhere'
    (folder / 'fine_tuned').rename(moved)
    last = moved / 'epoch_14.pth'
    kept = last.read_bytes()
    last.unlink()
    cfg = Config.fromfile(moved / 'tiny_config.py')
    cfg.experiment_name = f'stock_{tmp_path.name}'
    Runner.from_cfg(cfg).train()
    assert last.exists()
    again = tmp_path / 'again.pth'
    again.write_bytes(kept)
    assert same_weights(last, again)


def test_what_the_user_set_stays():
    cfg = Config(
        dict(
            default_hooks=dict(checkpoint=dict(type='MyHook', interval=3)),
            custom_hooks=[dict(type='SeedHook')],
            randomness=dict(seed=5),
            train_dataloader=dict(persistent_workers=True),
        )
    )
    with_safety(cfg, seed=1)
    assert cfg.default_hooks.checkpoint == dict(type='MyHook', interval=3)
    assert cfg.custom_hooks == [dict(type='SeedHook')]
    assert cfg.randomness.seed == 5
    assert cfg.train_dataloader.persistent_workers


def test_the_safe_hooks_take_the_place_of_the_stock_ones():
    lines = []
    cfg = Config(
        dict(
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=3)
            ),
            train_dataloader=dict(persistent_workers=True),
        )
    )
    with_safety(cfg, seed=1, log=lines.append)
    assert cfg.default_hooks.checkpoint.type == 'mmprune.SafeCheckpointHook'
    assert cfg.default_hooks.checkpoint.interval == 3
    assert [hook.type for hook in cfg.custom_hooks] == ['mmprune.SeedHook']
    assert not cfg.train_dataloader.persistent_workers
    assert 'persistent_workers' in lines[0]
    assert cfg.randomness.seed == 1


def test_auto_scale_lr_scales_by_the_batch_of_all_ranks():
    cfg = Config(
        dict(
            auto_scale_lr=dict(base_batch_size=8),
            train_dataloader=dict(batch_size=2),
            optim_wrapper=dict(optimizer=dict(lr=0.4)),
        )
    )
    assert scale_lr(cfg, world_size=2) == 0.5
    assert cfg.optim_wrapper.optimizer.lr == 0.2
    cfg.auto_scale_lr = ConfigDict()
    with pytest.raises(ValueError, match='base_batch_size'):
        scale_lr(cfg, 2)


# -- bad input -------------------------------------------------------------


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--retrain'], '--retrain goes with --fine-tune'),
        (['--distill', '2'], '--distill goes with --fine-tune'),
        (['--fine-tune', '--distill', '-1'], 'positive weight, found -1'),
        (['--fine-tune', '--fine-tune-epochs', '0'], 'at least 1'),
        (['--fine-tune', '--gpus', '0'], 'at least 1'),
        (['--resume', '--force'], '--resume keeps what --force removes'),
        (
            ['--fine-tune', '--mode', 'structured', '--train', 'both'],
            '--mode structured does not make it',
        ),
        (['--fine-tune', '--auto-scale-lr'], 'base_batch_size'),
        (['--gpu-ids', '0', '0'], 'different numbers'),
        (['--launcher', 'pytorch'], 'RANK, WORLD_SIZE'),
    ],
)
def test_bad_flags(capsys, files, monkeypatch, flags, message):
    for name in ('RANK', 'WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    assert message in fails(capsys, files, *flags)


def test_amp_needs_cuda(capsys, files, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert '--amp needs a CUDA' in fails(capsys, files, '--fine-tune', '--amp')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('del train_dataloader', 'has no `train_dataloader`'),
        ('train_cfg = None', 'has no `train_cfg`'),
        ('optim_wrapper = dict(one=dict())', 'optim_wrapper.optimizer.lr'),
        (
            "train_cfg = dict(type='IterBasedTrainLoop', max_iters=9)",
            'trains by iterations',
        ),
        (
            "train_dataloader['dataset']['folder'] = '/nowhere'",
            '/nowhere',
        ),
        ("train_dataloader['dataset']['count'] = 0", 'cannot be built'),
    ],
)
def test_what_cannot_be_trained_is_refused_before_pruning(
    capsys, files, text, message
):
    files[0].write_text(files[0].read_text() + text + '\n')
    assert message in fails(capsys, files, '--fine-tune')
    assert not (files[0].parent / 'out').exists()
