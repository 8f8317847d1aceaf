"""The guide's command line for iterative pruning, and its configs."""

import json
import os
import pickle
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from tool_modules import command

from mmprune.datasets import CIFAR, Digits
from mmprune.loops import IterativePruningLoop
from mmprune.loops.rounds import Rounds
from mmprune.models import build_model, load_model
from mmprune.registry import DATASETS, LOOPS
from mmprune.run.cli import load_config
from mmprune.run.flags import read
from mmprune.run.options import LaunchOptions
from mmprune.sparsifying import RewindPoint

DOOR = ROOT / 'tools' / 'guides' / 'main_imp_fillback.py'
# The guide's experiments, word by word but for the numbers.
SAME = """
    --arch vit_small --dataset cifar10 --data {data} --vit_pretrained
    --vit_structured --vit_prune_target both --criteria magnitude --rate 0.7
    --mlp_prune_ratio 0.7 --pruning_times 2 --epochs 1 --batch_size 8
    --sorting_mode global --lr 0.01 --init {init} --save_dir {out}
    --exp_name {name}
"""
REFILL = SAME + ' --struct refill --fillback_rate 0.0'
RSST = SAME + (
    ' --struct rsst --reg_granularity_prune 1.0 --RST_schedule '
    'exp_custom_exponents --exponents 4'
)
# A ViT-Small in name and heads, small enough for a test.
SMALL = (
    ' --workers 0 --cfg-options model.depth=3 model.embed_dim=48 '
    'train_cfg.latency_runs=0'
)
door = command('guides/main_imp_fillback')


def write_images(
    root: Path, files: tuple[str, str], labels: str, count: int
) -> Path:
    """Writes sixteen training images and four to test, as CIFAR has them."""
    draw = np.random.default_rng(0)
    for name, size in zip(files, (16, 4), strict=True):
        batch = dict(
            data=draw.integers(0, 256, (size, 3072), dtype=np.uint8),
            **{labels: draw.integers(0, count, size).tolist()},
        )
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(batch, protocol=2))
    return root


def write_cifar10(root: Path) -> Path:
    names = ('data_batch_1', 'test_batch')
    names = tuple(f'cifar-10-batches-py/{name}' for name in names)
    return write_images(root, names, 'labels', 10)


def write_cifar100(root: Path) -> Path:
    names = ('cifar-100-python/train', 'cifar-100-python/test')
    return write_images(root, names, 'fine_labels', 100)


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> Path:
    return write_cifar10(tmp_path_factory.mktemp('cifar'))


def options_of(line: str):
    """The flags of the guide as they are read."""
    return read('', (door.GuideOptions, LaunchOptions), line.split())[0]


def trained(folder: Path, dataset: str = 'cifar10') -> Path:
    """An init file whose weights look like trained ones."""
    cfg = door.config_from(options_of(f'--dataset {dataset}'))
    cfg.merge_from_dict({'model.depth': 3, 'model.embed_dim': 48})
    model = build_model(cfg)
    for name, value in model.named_parameters():
        if value.ndim > 1 and 'blocks' in name:
            torch.nn.init.normal_(value, std=0.06)
    path = folder / f'vit_small_{dataset}_pretrained_init.pth.tar'
    RewindPoint.of(model).save(path)
    return path


@pytest.mark.parametrize('line', [REFILL, RSST], ids=['refill', 'rsst'])
def test_the_command_line_of_the_guide_runs(tmp_path, images, line, capsys):
    out = tmp_path / 'checkpoint' / 'vit_small_70p'
    init = trained(tmp_path)
    words = (line + SMALL).format(
        data=images, init=init, out=out, name=f'cifar10_70p_{tmp_path.name}'
    )
    door.main(words.split())
    found = json.loads((out / 'rounds.json').read_text())
    assert found['experiment'].startswith('cifar10_70p_')
    # 3 layers of 6 heads and 192 neurons: .7 of 18 and of 576
    last = found['rounds'][-1]['layers']
    heads = [x['pruned'] for x in last if x['granularity'] == 'head']
    neurons = [x['pruned'] for x in last if x['granularity'] == 'neuron']
    assert sum(heads) == 13 and sum(neurons) == 403
    assert (found['options']['decay'] is not None) == ('rsst' in line)
    said = capsys.readouterr().out
    assert 'std of the first qkv weight 0.06' in said
    for state in (0, 1):
        assert f'pruning state: {state} finished' in said
    assert '* Acc@1: ' in said
    (config,) = out.glob('*/vis_data/config.py')
    small = load_model(Config.fromfile(config), out / 'pruned.pth')
    assert small(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    kept = [block.attn.num_heads for block in small.blocks]
    assert sum(kept) == 18 - 13 and min(kept) >= 1


def test_a_run_that_is_stopped_says_how_to_go_on(tmp_path):
    words = [
        '--dataset',
        'digits',
        '--arch',
        'vit_tiny_patch16_224',
        '--workers',
        '0',
    ]
    words += ['--epochs', '1000', '--save_dir', str(tmp_path / 'run')]
    words += ['--cfg-options', 'model.depth=1', 'model.embed_dim=24']
    process = subprocess.Popen(
        [sys.executable, str(DOOR), *words],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.time() + 120
    while not (tmp_path / 'run' / 'latest.pth').exists():
        assert process.poll() is None and time.time() < end
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    (line,) = [s for s in errors.splitlines() if 'stopped by' in s]
    assert 'latest' in line or 'epoch_' in line
    assert line.endswith('--resume') and 'main_imp_fillback.py' in line


def test_the_door_destroys_no_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(door, 'train', lambda *_: pytest.fail('it trains'))
    (tmp_path / 'epoch_3.pth').touch()
    with pytest.raises(SystemExit) as end:
        door.main(['--dataset', 'digits', '--save_dir', str(tmp_path)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert (
        'holds another run (epoch_3.pth); go on with it by --resume' in error
    )
    assert 'overwrite it by --force, or choose another --save_dir' in error


@pytest.mark.slow
def test_the_four_experiments_of_the_guide_run_at_once(tmp_path):
    write_cifar10(tmp_path / 'data' / 'cifar10')
    write_cifar100(tmp_path / 'data' / 'cifar100')
    (tmp_path / 'init_model').mkdir()
    for dataset in ('cifar10', 'cifar100'):
        trained(tmp_path / 'init_model', dataset)
    small = '--epochs 1 --pruning_times 2 --batch_size 8' + SMALL
    done = subprocess.run(
        [ROOT / 'tools/guides/run_vit_small_70p_all.sh', *small.split()],
        cwd=tmp_path,
        env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    logs = sorted((tmp_path / 'logs_vit_small_70p').glob('*.log'))
    assert len(logs) == 4
    for log in logs:
        text = log.read_text()
        assert 'pruning state: 1 finished' in text and 'Acc@1' in text
        assert 'System environment' not in text


def test_the_door_takes_a_launcher(capsys):
    with pytest.raises(SystemExit):
        door.main(['--dataset', 'digits', '--launcher', 'pytorch'])
    assert 'torchrun' in capsys.readouterr().err


def test_a_checkpoint_is_tested_without_what_its_training_began_with(
    tmp_path,
):
    config = ROOT / 'projects/configs/vit/vit_tiny_digits_imp.py'
    options = ['model.depth=1', 'model.embed_dim=24', 'model.num_heads=1']
    cfg = load_config(str(config), options)
    torch.save(
        dict(state_dict=build_model(cfg).state_dict()), tmp_path / 'vit.pth'
    )
    main = runpy.run_path(str(ROOT / 'tools' / 'test.py'))['main']
    metrics = main(
        [str(config), str(tmp_path / 'vit.pth'), '--work-dir', str(tmp_path)]
        + ['--cfg-options', *options, 'model.pretrained=gone.pth']
    )
    assert 0 <= metrics['Acc@1'] <= 100


def test_the_door_resumes_without_a_checkpoint_by_starting_anew(
    tmp_path, capsys, monkeypatch
):
    seen = []
    monkeypatch.setattr(door, 'train', lambda cfg, *_: seen.append(cfg))
    words = ['--dataset', 'digits', '--save_dir', str(tmp_path), '--resume']
    door.main(words)
    assert 'starting anew' in capsys.readouterr().out
    assert not seen[0].get('resume')
    with pytest.raises(SystemExit):
        door.main([*words, '--cfg-options', 'model'])
    assert 'takes KEY=VALUE' in capsys.readouterr().err


def test_an_untrained_init_is_no_pretrained_one(tmp_path, capsys):
    init = trained(tmp_path)
    point = RewindPoint.load(init)
    weights = {k: v / 3 if v.ndim > 1 else v for k, v in point.weights.items()}
    torch.save(dict(state_dict=weights), init)
    words = REFILL.format(data='x', init=init, out='x', name='x').split()
    with pytest.raises(SystemExit):
        door.main(words)
    assert 'looks untrained' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        ('--exponents 4', '--exponents has no effect without --struct rsst'),
        (
            '--struct rsst --vit_prune_target head',
            '--vit_prune_target has no effect without --vit_structured',
        ),
        (
            '--vit_structured --vit_prune_target head --mlp_prune_ratio 0.5',
            '--mlp_prune_ratio has no effect with --vit_prune_target head',
        ),
        ('--arch resnet18', '--arch resnet18 is no vision transformer'),
        ('--dataset imagenet', "--dataset: invalid choice: 'imagenet'"),
        ('--criteria fisher', "--criteria: invalid choice: 'fisher'"),
        ('--dataset digits --data x', '--data has no effect without a CIFAR'),
        ('--pretrained_file x', 'has no effect without --vit_pretrained'),
        ('--decreasing_lr 9;8', '--decreasing_lr takes epochs with commas'),
        ('--data nowhere', 'nothing is downloaded by itself'),
        (
            '--dataset digits --struct regroup',
            "--struct: invalid choice: 'regroup'",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, capsys, flags, says):
    words = [*flags.split(), '--save_dir', str(tmp_path / 'run')]
    with pytest.raises(SystemExit) as stopped:
        door.main([*words, '--workers', '0'])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and says in error
    assert error.count('\n') == 1


def test_flags_become_settings():
    words = (
        '--dataset cifar100 --data there --struct rsst --vit_structured '
        '--criteria l2 --rate 0.5 --mlp_prune_ratio 0.25 --epochs 9 '
        '--warmup 20 --decreasing_lr 3,6 --reg_granularity_prune 2 '
        '--RST_schedule x^3 --momentum 0.8 --seed 7'
    )
    cfg = door.config_from(options_of(words))
    assert cfg.model.num_classes == 100 and cfg.model.pretrained is None
    loop = cfg.train_cfg
    assert loop.pruner.sparsity == dict(head=0.5, neuron=0.25)
    assert loop.pruner.importance == dict(type='mmprune.Activation', p=2)
    assert loop.decay.strength == 2
    assert (loop.decay.shape, loop.decay.exponent) == ('power', 3)
    assert cfg.optim_wrapper.optimizer.momentum == 0.8
    warmup, steps = cfg.param_scheduler
    assert warmup['end'] == 9 and steps['milestones'] == [3, 6]
    assert cfg.val_dataloader.dataset.data_root == 'there'
    assert cfg.val_dataloader.dataset.kind == 'cifar100'
    assert cfg.randomness.seed == 7


# ------------------------------------------------------------------ configs


@pytest.mark.parametrize(
    'path',
    sorted((ROOT / 'projects/configs/vit').glob('*.py')),
    ids=lambda p: p.stem,
)
def test_a_config_names_what_exists(path):
    cfg = Config.fromfile(path)
    assert LOOPS.get(cfg.train_cfg.type) is IterativePruningLoop
    assert DATASETS.get(cfg.train_dataloader.dataset.type) in (CIFAR, Digits)
    settings = dict(cfg.train_cfg)
    for name in ('type', 'val_interval', 'init'):
        settings.pop(name, None)
    Rounds.check_names(settings)
    plan = Rounds(**settings)
    assert plan.sparsity(plan.events) == dict(head=0.7, neuron=0.7)
    assert max(s.begin for s in cfg.param_scheduler if 'begin' in s) < (
        plan.epochs
    )


def test_the_embeddings_are_resized_by_an_option():
    path = ROOT / 'projects/configs/vit/vit_small_cifar100_rsst_70p.py'
    cfg = load_config(str(path), ['model.pretrained.resize=True'])
    assert cfg.model.pretrained.resize and cfg.model.pretrained.source
