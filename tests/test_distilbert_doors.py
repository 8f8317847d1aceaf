"""The four doors of the DistilBERT guides, and the report about them."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmprune.run import named_runs
from mmprune.run.final_report import STEPS, draw

GUIDES = Path(__file__).resolve().parents[1] / 'tools' / 'guides'
SMALL = (
    'train_dataloader.dataset.size=96',
    'val_dataloader.dataset.size=40',
)


@pytest.fixture(scope='module')
def door():
    """Returns a module of tools/guides by its number."""
    sys.path.insert(0, str(GUIDES))

    def load(number: int):
        (path,) = GUIDES.glob(f'{number}_*.py')
        spec = importlib.util.spec_from_file_location(f'door{number}', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.path.remove(str(GUIDES))


@pytest.fixture
def tiny_task(door, monkeypatch):
    """The embedded task with few sentences and one epoch."""
    from distilbert_guide import words

    cfg = words.load_config(str(words.CONFIGS / 'dense_tiny.py'))
    cfg.train_cfg.max_epochs = 1
    cfg.param_scheduler = []
    for key, size in (('train', 96), ('val', 40), ('test', 40)):
        cfg[f'{key}_dataloader'].dataset.size = size
    monkeypatch.setattr(words, 'task_config', lambda args: cfg.copy())
    return words, cfg


def config8(door, words, cfg, *flags) -> Config:
    step = door(8)
    args = step.parse_args(list(flags))
    return step.config_from(args, cfg, 'dense.pth')


def hook_of(cfg: Config) -> dict:
    (hook,) = (
        h
        for h in cfg.custom_hooks
        if h['type'] == 'mmprune.GradualPruningHook'
    )
    return hook


def test_the_modes_differ_by_what_the_guide_lists(door, tiny_task):
    words, cfg = tiny_task
    full = config8(door, words, cfg)
    fast = config8(door, words, cfg, '--fast')
    assert (full.train_cfg.max_epochs, fast.train_cfg.max_epochs) == (8, 4)
    sizes = [c.train_dataloader.batch_size for c in (full, fast)]
    assert sizes == [32, 64]
    assert 'fraction' not in full.train_dataloader.dataset
    assert fast.train_dataloader.dataset.fraction == 0.3
    assert fast.val_dataloader.dataset.fraction == 0.5
    assert fast.train_dataloader.dataset.max_length == 64
    assert hook_of(full)['schedule']['final'] == dict(head=0.3, neuron=0.2)
    assert hook_of(fast)['schedule']['final'] == 0.2
    assert hook_of(fast)['pruner']['together']
    assert fast.optim_wrapper.type == 'mmprune.AutocastOptimWrapper'
    assert full.optim_wrapper.get('type') is None
    patience = [
        hook['patience']
        for c in (full, fast)
        for hook in c.custom_hooks
        if hook['type'] == 'mmprune.EarlyStopHook'
    ]
    assert patience == [5, 2]


def test_the_shipped_modes_have_the_numbers_of_the_guide(door, tiny_task):
    words, _ = tiny_task
    found = {}
    for name in ('full', 'fast', 'conservative', 'aggressive'):
        hook = hook_of(words.mode_config(f'kgsp_{name}'))
        importance = hook['pruner']['importance']
        found[name] = (
            importance['lambda_mag'],
            importance['lambda_grad'],
            hook['interval'],
            hook['window'],
            hook['schedule']['final'],
        )
    assert found == {
        'full': (0.5, 0.5, 40, 50, dict(head=0.3, neuron=0.2)),
        'fast': (1.0, 0.0, 100, 20, 0.2),
        'conservative': (0.6, 0.4, 40, 100, dict(head=0.2, neuron=0.15)),
        'aggressive': (0.5, 0.5, 40, 50, dict(head=0.4, neuron=0.35)),
    }
    weights, temperature = words.weights_of(words.mode_config('qkd_full'))
    assert weights == pytest.approx(dict(ce=0.3, logits=0.5, hidden=0.2))
    assert temperature == 4.0
    fast = words.weights_of(words.mode_config('qkd_fast'))[0]
    assert fast == dict(ce=0.3, logits=0.5, hidden=0)


def test_flags_win_over_modes(door, tiny_task):
    words, cfg = tiny_task
    found = config8(
        door,
        words,
        cfg,
        *('--fast', '--num_epochs', '2', '--batch_size', '24'),
        *('--learning_rate', '0.5', '--enable_multi_granularity'),
        *('--head_final_sparsity', '0.5', '--pruning_window_steps', '7'),
        *('--importance_mode', 'l2+kd_grad', '--lambda_grad', '0.25'),
    )
    assert found.train_cfg.max_epochs == 2
    assert found.train_dataloader.batch_size == 24
    assert found.optim_wrapper.optimizer.lr == 0.5
    hook = hook_of(found)
    assert hook['schedule']['final'] == dict(head=0.5, neuron=0.2)
    assert hook['pruner']['importance']['lambda_grad'] == 0.25
    assert hook['pruner']['importance']['lambda_mag'] == 0.5
    assert hook['window'] == 7


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (['--fast', '--head_final_sparsity', '0.5'], 'have no effect on one'),
        (['--final_sparsity', '0.5'], 'add --no-enable_multi_granularity'),
    ],
)
def test_flags_without_effect_are_refused(door, tiny_task, flags, says):
    with pytest.raises(ValueError, match=says):
        config8(door, *tiny_task, *flags)


def test_the_four_steps(door, tiny_task, tmp_path, capsys):
    models = str(tmp_path)
    one = ['--num_epochs', '1', '--models_dir', models]
    door(8).main(['--fast', *one])
    pruned = named_runs.newest(models, 'pruning_with_finetuning')
    about = named_runs.about(pruned)
    assert about['checkpoint'] == 'pruned.pth'
    (row,) = json.loads((pruned / 'training_history.json').read_text())
    assert row['epoch'] == 1 and row['sparsity'] == pytest.approx(
        234 / 1170, abs=1e-3
    )
    assert {'loss', 'Acc@1'} <= row.keys()

    door(9).main(['--models_dir', models, '--group_size', '16'])
    door(10).main(['--fast', *one, '--beta_hidden', '0.1'])
    learnt = named_runs.newest(models, 'pruned_qkd4bit')
    assert (learnt / 'training_history.json').is_file()
    saved = torch.load(learnt / 'quantized.pth', weights_only=True)
    assert saved['meta']['quantization']['scheme']['group_size'] == 32

    door(7).main(['--models_dir', models, '--latency_runs', '0'])
    rows = json.loads((tmp_path / 'final_report.json').read_text())['models']
    assert [row['name'] for row in rows] == list(STEPS)
    assert [row['weight_bits'] for row in rows] == [32, 4, 32, 4, 4]
    assert rows[2]['gflops'] == rows[3]['gflops'] == rows[4]['gflops']
    assert rows[2]['gflops'] < rows[0]['gflops']
    assert rows[0]['heads_kept_per_layer'] == [6, 6, 6]
    kept = [*rows[4]['heads_kept_per_layer'], *rows[4]['ffn_per_layer']]
    assert sum(kept) == 1170 - 234
    assert rows[4]['params_total'] == rows[2]['params_total']
    assert (tmp_path / 'final_report.png').stat().st_size > 10_000
    assert 'QKD-4bit' in (tmp_path / 'report.html').read_text()


def test_a_step_without_the_one_before_says_so(door, tmp_path, capsys):
    with pytest.raises(SystemExit):
        door(9).main(['--models_dir', str(tmp_path)])
    assert 'no pruned model in' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        door(8).main(['--data', 'sst2', '--models_dir', str(tmp_path)])
    assert '--data and --encoder go together' in capsys.readouterr().err


def test_the_picture_shows_standard_errors(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    seen, errorbar = [], Axes.errorbar

    def watched(self, x, y, error, **options):
        seen.append((x, y, error))
        return errorbar(self, x, y, error, **options)

    monkeypatch.setattr(Axes, 'errorbar', watched)
    row = dict(name='dense', accuracy=0.8, n_eval=100, gflops=2.0, seq_len=8)
    row |= dict(size_mb_on_disk=1.0, weight_bits=32, latency_ms=1.0)
    draw([row], tmp_path / 'final_report.png')
    assert seen == [(2.0, 0.8, pytest.approx(0.04))]  # sqrt(.8 x .2 / 100)
