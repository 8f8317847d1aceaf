"""Fine-tuning and retraining of pruned models, on one CPU."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config, ConfigDict
from mmengine.optim import LinearLR
from mmengine.runner import Runner
from tiny_project import (
    CONFIG,
    IMAGE,
    LIVELY,
    write_checkpoint,
    write_config,
)

from mmprune.atomic_file import save_checkpoint
from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.groups import named_tensors
from mmprune.models import build_model, load_model
from mmprune.plan import PruningPlan
from mmprune.run.training.length import Length
from mmprune.run.training.recipe import (
    FINE_TUNE,
    RETRAIN,
    scale_lr,
    schedule,
    with_safety,
)
from mmprune.run.training.start import digest, parameter_order
from mmprune.surgery import kept_index

PRUNE = ROOT / 'tools' / 'prune_and_retrain.py'
QUICK = ['--latency-runs', '0', '--no-eval']
# Twelve epochs of the config become those of the run.
COSINE = """
train_cfg = dict(by_epoch=True, max_epochs=12)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.25, by_epoch=False, begin=0, end=5),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, T_max=12),
]
"""


@pytest.fixture
def files(tmp_path):
    config = write_config(tmp_path, CONFIG + COSINE)
    return config, write_checkpoint(tmp_path, momentum=True, epoch=12)


def run(files, *flags, out='out'):
    """Runs the command in this process; returns its folder."""
    folder = files[0].parent / out
    paths = [str(p) for p in files]
    main = runpy.run_path(str(PRUNE))['main']
    main([*paths, *QUICK, '--output-dir', str(folder), *map(str, flags)])
    return folder


def scalars(folder):
    """The lines that training logged, of all its starts."""
    lines = []
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        lines += map(json.loads, path.read_text().splitlines())
    return lines


def weights(path):
    return load_checkpoint_file(path)['state_dict']


def same_weights(one, two):
    one, two = weights(one), weights(two)
    assert one.keys() == two.keys()
    return all(torch.equal(one[k], two[k]) for k in one)


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


# -- the optimizer's state -------------------------------------------------


def test_the_momentum_of_the_kept_units_is_identical(files):
    folder = run(files, '--fine-tune', '--pruning-ratio', 0.5)
    dense = load_checkpoint_file(files[1])
    start = load_checkpoint_file(folder / 'fine_tuned' / 'start.pth')
    plan = PruningPlan.load(folder / 'plan.json')
    cfg = Config.fromfile(files[0])
    model = build_model(cfg)
    shapes = {n: tuple(t.shape) for n, t in named_tensors(model).items()}
    index = kept_index(plan, shapes)
    names = [n for n, _ in model.named_parameters()]
    checked = 0
    for i, entry in dense['optimizer']['state'].items():
        expected = entry['momentum_buffer']
        for dim, kept in index.get(names[i], {}).items():
            expected = expected.index_select(dim, kept)
        found = start['optimizer']['state'][i]['momentum_buffer']
        assert torch.equal(found, expected)
        assert found.shape == start['state_dict'][names[i]].shape
        checked += found.numel() < entry['momentum_buffer'].numel()
    assert checked >= 6  # sliced: one, norm, two, branch.0, branch.2
    assert len(start['optimizer']['state']) == 16


def test_the_first_step_uses_the_carried_momentum(files):
    """SGD by hand: v = 0.9 v + g, w = w - lr v, at a known lr."""
    folder = run(files, '--fine-tune', '--fine-tune-epochs', 1)
    start = load_checkpoint_file(folder / 'fine_tuned' / 'start.pth')
    fresh = {**start, 'optimizer': {**start['optimizer'], 'state': {}}}
    after = []
    for checkpoint in (start, fresh):
        save_checkpoint(checkpoint, folder / 'fine_tuned' / 'start.pth')
        cfg = Config.fromfile(folder / 'fine_tuned' / 'tiny_config.py')
        cfg.work_dir = str(folder / 'stock')
        cfg.train_cfg.max_epochs = 13
        cfg.train_dataloader.batch_size = 3  # one step
        cfg.experiment_name = f'momentum_{len(after)}_{folder.parent.name}'
        runner = Runner.from_cfg(cfg)
        runner.train()
        after.append(runner.model.state_dict()['one.weight'])
    lr = start['optimizer']['param_groups'][0]['lr']
    order = [n for n, _ in runner.model.named_parameters()]
    buffer = start['optimizer']['state'][order.index('one.weight')]
    expected = lr * 0.9 * buffer['momentum_buffer']
    assert torch.allclose(after[1] - after[0], expected, atol=1e-6)
    assert expected.abs().max() > 1e-3


def test_retraining_starts_with_a_fresh_optimizer(files):
    folder = run(files, '--fine-tune', '--retrain', '--fine-tune-epochs', 1)
    start = load_checkpoint_file(folder / 'retrained' / 'start.pth')
    assert 'optimizer' not in start
    assert start['meta']['epoch'] == 0


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (lambda c: c.pop('optimizer'), 'the checkpoint has none'),
        (lambda c: c['optimizer']['param_groups'][0].pop('momentum'), 'kind'),
        (
            lambda c: c['optimizer']['param_groups'][0]['params'].pop(),
            'it has 17',
        ),
        (
            lambda c: c['optimizer']['state'][3].update(
                momentum_buffer=torch.ones(5)
            ),
            'its shapes differ, first at one.bias',
        ),
    ],
)
def test_state_that_cannot_be_carried_is_said(files, capsys, change, reason):
    checkpoint = load_checkpoint_file(files[1])
    change(checkpoint)
    save_checkpoint(checkpoint, files[1])
    run(files, '--fine-tune', '--fine-tune-epochs', 1)
    found = capsys.readouterr().out
    assert 'the optimizer starts afresh' in found
    assert reason in found


def test_groups_of_the_optimizer_do_not_mix_up_its_state(files):
    """With paramwise_cfg every parameter is a group of its own."""
    text = files[0].read_text()
    text += (
        "optim_wrapper['paramwise_cfg'] = dict(custom_keys=dict(branch="
        'dict(lr_mult=0.1)))\n'
    )
    files[0].write_text(text)
    folder = run(files, '--fine-tune', '--fine-tune-epochs', 1)
    start = load_checkpoint_file(folder / 'fine_tuned' / 'start.pth')[
        'optimizer'
    ]
    rates = {g['lr'] for g in start['param_groups']}
    assert len(start['param_groups']) == 16
    assert len(rates) == 2
    assert max(rates) == pytest.approx(10 * min(rates))
    assert len(start['state']) == 16


def test_the_order_of_an_optimizer_is_that_of_its_groups():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    groups = [{'params': model[1].parameters()}, {'params': [model[0].bias]}]

    class Wrapper:
        optimizer = torch.optim.SGD(groups, lr=1)

    order = parameter_order(model, Wrapper())
    assert order == ['1.weight', '1.bias', '0.bias']


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


def fails(capsys, files, *flags):
    with pytest.raises(SystemExit) as end:
        run(files, *flags)
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    assert len(errors) == 1
    return errors[0]


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


# -- resume ----------------------------------------------------------------


def test_resume_of_a_finished_run_does_nothing_again(files):
    folder = run(files, '--fine-tune', '--fine-tune-epochs', 1)
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob('*.pth')}
    run(files, '--fine-tune', '--fine-tune-epochs', 1, '--resume')
    assert stamps == {p: p.stat().st_mtime_ns for p in folder.rglob('*.pth')}


def test_resume_trains_what_was_only_pruned(files):
    folder = run(files)
    stamp = (folder / 'tiny_pruned.pth').stat().st_mtime_ns
    run(files, '--fine-tune', '--fine-tune-epochs', 1, '--resume')
    assert (folder / 'fine_tuned' / 'epoch_13.pth').exists()
    assert (folder / 'tiny_pruned.pth').stat().st_mtime_ns == stamp


def test_resume_prunes_again_what_did_not_finish(files):
    folder = run(files)
    (folder / 'report.json').unlink()
    run(files, '--resume')
    assert (folder / 'report.json').exists()


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--pruning-ratio', '0.4'], 'sparsity 0.3 there, 0.4 now'),
        (['--fine-tune-epochs', '2'], 'started with other options'),
        (['--cfg-options', 'model.dropout=0.1'], 'cfg_options None there'),
    ],
)
def test_resume_with_other_options_is_refused(capsys, files, flags, message):
    run(files, '--fine-tune', '--fine-tune-epochs', 1)
    given = ['--fine-tune', '--fine-tune-epochs', 1, '--resume', *flags]
    assert message in fails(capsys, files, *given)


def test_force_removes_the_training_of_an_older_run(files):
    folder = run(files, '--fine-tune', '--fine-tune-epochs', 1)
    run(files, '--force')
    assert not (folder / 'fine_tuned').exists()


def start(files, *flags, out='out'):
    """Starts the command in a process of its own."""
    # A shell starts background jobs with SIGINT ignored, and children inherit
    # that; a handler here gives the child the default again.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = files[0].parent / out
    words = [PRUNE, *files, *QUICK, '--output-dir', folder, *flags]
    env = {
        **os.environ,
        'PYTHONPATH': f'{ROOT / "tests"}',
        'OMP_NUM_THREADS': '1',
    }
    return folder, subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(started):
    folder, process = started
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder


def wait_for(path: Path, process, seconds=300):
    end = time.time() + seconds
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.time() < end
        time.sleep(0.01)


LONG = ('--fine-tune', '--fine-tune-epochs', 20)


@pytest.fixture(scope='module')
def never_stopped(tmp_path_factory):
    """The files of a run, and what it wrote in one go."""
    folder = tmp_path_factory.mktemp('never_stopped')
    files = (
        write_config(folder, CONFIG + COSINE + LIVELY),
        write_checkpoint(folder, momentum=True, epoch=12),
    )
    return files, finish(start(files, *LONG))


@pytest.mark.parametrize('name', ['SIGKILL', 'SIGTERM', 'SIGINT'])
def test_a_stopped_run_that_is_resumed_ends_with_the_same_bits(
    never_stopped, name
):
    files, never = never_stopped
    folder, process = start(files, *LONG, out=name)
    # Once it is there, latest.pth leads to the one before it or to it.
    wait_for(folder / 'fine_tuned' / 'epoch_16.pth', process)
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=120)
    stopped = load_checkpoint_file(folder / 'fine_tuned' / 'latest.pth')
    assert 15 <= stopped['meta']['epoch'] < 32
    if name != 'SIGKILL':
        code, word = (143, name) if name == 'SIGTERM' else (130, 'Ctrl-C')
        assert process.returncode == code
        (line,) = [s for s in errors.splitlines() if 'stopped by' in s]
        assert word in line
        assert 'epoch_' in line
        assert line.endswith('--resume')
    # Sums depend on the number of threads: all these runs have one.
    finish(start(files, *LONG, '--resume', out=name))
    last = 'fine_tuned/epoch_32.pth'
    assert same_weights(folder / last, never / last)
    one, two = (
        load_checkpoint_file(folder / last),
        load_checkpoint_file(never / last),
    )
    for i, entry in one['optimizer']['state'].items():
        other = two['optimizer']['state'][i]['momentum_buffer']
        assert torch.equal(entry['momentum_buffer'], other)


def test_the_digest_tells_plans_and_weights_apart(files):
    folder = run(files)
    checkpoint = load_checkpoint_file(folder / 'tiny_structured_pruned.pth')
    first = digest(checkpoint)
    checkpoint['state_dict']['one.weight'][0, 0, 0, 0] += 1
    second = digest(checkpoint)
    checkpoint['meta']['pruning_plan']['keep']['one'].pop()
    assert len({first, second, digest(checkpoint)}) == 3
