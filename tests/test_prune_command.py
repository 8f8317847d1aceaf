"""tools/prune_and_retrain.py and tools/test.py from the outside."""

import json
import os
import pickle
import runpy
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.runner import Runner
from tiny_project import CONFIG, IMAGE, write_checkpoint, write_config

from mmprune.models import load_model
from mmprune.plan import PruningPlan
from mmprune.run.console import metrics_that_matter

PRUNE = ROOT / 'tools' / 'prune_and_retrain.py'
TEST = ROOT / 'tools' / 'test.py'


def command(tool):
    return runpy.run_path(str(tool))['main']


@pytest.fixture
def files(tmp_path):
    return write_config(tmp_path), write_checkpoint(tmp_path, epoch=7)


def prune(files, *flags):
    """Runs the command; returns its folder."""
    folder = files[0].parent / 'out'
    paths = [str(p) for p in files]
    quick = ['--latency-runs', '0', '--output-dir', str(folder)]
    command(PRUNE)([*paths, *quick, *flags])
    return folder


def load(folder, name, files):
    return load_model(Config.fromfile(files[0]), folder / name)


def test_all_files_are_written_under_the_names_of_the_guide(files):
    folder = prune(files, '--pruning-ratio', '0.5')
    assert {p.name for p in folder.iterdir()} == {
        'tiny_pruned.pth',
        'tiny_structured_pruned.pth',
        'tiny_structured_pruned.py',
        'plan.json',
        'report.html',
        'report.json',
        'report.md',
    }


def test_unstructured_zeroes_exactly_the_asked_fraction(files):
    folder = prune(files, '--pruning-ratio', '0.37')
    model = load(folder, 'tiny_pruned.pth', files)
    weights = [
        m.weight
        for m in model.modules()
        if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
    ]
    total = sum(w.numel() for w in weights)
    zeros = sum(int((w == 0).sum()) for w in weights)
    assert zeros == int(0.37 * total + 0.5)
    dense = torch.load(files[1])['state_dict']
    name = 'one.weight'
    kept = model.state_dict()[name] != 0
    assert torch.equal(model.state_dict()[name][kept], dense[name][kept])


def test_structured_removes_the_asked_units_and_leaves_frozen_ones(files):
    folder = prune(files, '--pruning-ratio', '0.5', '--mode', 'structured')
    assert not (folder / 'tiny_pruned.pth').exists()
    model = load(folder, 'tiny_structured_pruned.pth', files)
    assert model.stem.out_channels == 16
    assert model.one.out_channels + model.two.out_channels == 24
    assert model.branch[0].out_features == 32
    report = json.loads((folder / 'report.json').read_text())
    reasons = {g['group']: g['dense_because'] for g in report['groups']}
    assert reasons['stem'] == 'frozen in training'
    assert 'LayerNorm' in reasons['scored.0']
    assert report['models']['structured']['masked_difference'] < 1e-5


def test_frozen_layers_lose_units_by_choice(files):
    folder = prune(files, '--prune-frozen', '--mode', 'structured')
    model = load(folder, 'tiny_structured_pruned.pth', files)
    assert model.stem.out_channels < 16
    assert not model.stem.weight.requires_grad


@pytest.mark.parametrize('target', ['params', 'macs'])
@pytest.mark.parametrize('importance', ['l1', 'l2', 'taylor', 'random'])
def test_the_target_is_met_within_one_percent(files, target, importance):
    folder = prune(
        files,
        *('--pruning-ratio', '0.4', '--target', target),
        *('--importance', importance, '--mode', 'structured'),
    )
    models = json.loads((folder / 'report.json').read_text())['models']
    left = models['structured'][target] / models['dense'][target]
    assert left == pytest.approx(0.6, abs=0.01)


def test_bn_scale_leaves_groups_without_a_norm_alone(files):
    folder = prune(files, '--importance', 'bn_scale', '--mode', 'structured')
    plan = PruningPlan.load(folder / 'plan.json')
    assert list(plan.keep) == ['one']


def test_zero_ratio_gives_the_dense_model_back(files):
    folder = prune(files, '--pruning-ratio', '0')
    dense = torch.load(files[1])['state_dict']
    for name in ('tiny_pruned.pth', 'tiny_structured_pruned.pth'):
        found = torch.load(folder / name)['state_dict']
        assert all(torch.equal(found[k], v) for k, v in dense.items())


def test_the_same_run_twice_gives_the_same_bytes_of_weights(files):
    first = torch.load(prune(files) / 'tiny_structured_pruned.pth')
    again = torch.load(prune(files, '--force') / 'tiny_structured_pruned.pth')
    assert first['meta']['pruning_plan'] == again['meta']['pruning_plan']
    for name, tensor in first['state_dict'].items():
        assert torch.equal(tensor, again['state_dict'][name])


def test_meta_of_the_dense_checkpoint_is_carried_on(files):
    meta = torch.load(prune(files) / 'tiny_pruned.pth')['meta']
    assert meta['epoch'] == 7
    assert "type='TinyModel'" in meta['cfg']


def test_kept_widths_are_multiples_of_round_to(files):
    folder = prune(files, '--round-to', '8', '--mode', 'structured')
    plan = PruningPlan.load(folder / 'plan.json')
    assert plan.keep
    assert all(len(k) % 8 == 0 for k in plan.keep.values())


def test_a_runtime_stands_for_its_width(files):
    folder = prune(files, '--for', 'tensorrt', '--mode', 'structured')
    plan = PruningPlan.load(folder / 'plan.json')
    assert plan.keep
    assert all(len(k) % 16 == 0 for k in plan.keep.values())


def test_a_group_that_cannot_lose_units_is_left_dense_with_the_reason(files):
    folder = prune(files, '--cfg-options', 'pruning.wrong=True')
    model = load(folder, 'tiny_structured_pruned.pth', files)
    assert model.two.out_channels == 16
    assert model.one.out_channels < 32
    report = json.loads((folder / 'report.json').read_text())
    reasons = {g['group']: g['dense_because'] for g in report['groups']}
    assert 'does not run without its units' in reasons['two']


def test_protected_groups_stay_dense(files):
    folder = prune(files, '--protect', '^branch', '--mode', 'structured')
    plan = PruningPlan.load(folder / 'plan.json')
    assert 'branch.0' not in plan.keep
    assert 'one' in plan.keep


# -- reload ----------------------------------------------------------------


def outputs(model):
    with torch.no_grad():
        return model(IMAGE)


def test_a_fresh_process_reloads_with_the_original_config(files, tmp_path):
    folder = prune(files, '--pruning-ratio', '0.5')
    checkpoint = folder / 'tiny_structured_pruned.pth'
    out = tmp_path / 'predictions.pkl'
    flags = ['--work-dir', tmp_path / 'work', '--out', out]
    run = subprocess.run(
        [sys.executable, TEST, files[0], checkpoint, *flags],
        env={**os.environ, 'PYTHONPATH': str(ROOT / 'tests')},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    model = load(folder, checkpoint.name, files)
    images = torch.cat([IMAGE, 2 * IMAGE])
    with torch.no_grad():
        expected = model(images)['classes']
    found = pickle.loads(out.read_bytes())
    assert torch.equal(torch.stack(found[:2]), expected)


def stock_runner(config, tmp_path):
    cfg = Config.fromfile(config)
    cfg.work_dir = str(tmp_path / 'work')
    cfg.experiment_name = f'stock_{tmp_path.name}'
    return Runner.from_cfg(cfg)


def test_a_stock_runner_loads_the_written_config(files, tmp_path):
    folder = prune(files, '--pruning-ratio', '0.5')
    moved = folder.rename(tmp_path / 'moved')  # plan and weights move along
    runner = stock_runner(moved / 'tiny_structured_pruned.py', tmp_path)
    metrics = runner.test()
    assert type(runner.model).__name__ == 'TinyModel'
    saved = torch.load(moved / 'tiny_structured_pruned.pth')
    assert saved['state_dict'].keys() == runner.model.state_dict().keys()
    model = load(moved, 'tiny_structured_pruned.pth', files)
    for key, value in outputs(model).items():
        assert torch.equal(outputs(runner.model)[key], value)
    assert set(metrics) == {'mean'}


def test_a_stock_runner_trains_it_and_its_checkpoints_carry_the_plan(
    files, tmp_path
):
    folder = prune(files, '--pruning-ratio', '0.5')
    runner = stock_runner(folder / 'tiny_structured_pruned.py', tmp_path)
    runner.train()
    before = torch.load(folder / 'tiny_structured_pruned.pth')['state_dict']
    after = runner.model.state_dict()
    moved = [k for k in before if not torch.equal(before[k], after[k])]
    trained = {
        n for n, p in runner.model.named_parameters() if p.requires_grad
    }
    assert trained <= set(moved)
    checkpoint = tmp_path / 'work' / 'epoch_1.pth'
    model = load_model(Config.fromfile(files[0]), checkpoint)
    assert model.one.out_channels == runner.model.one.out_channels


def test_a_dense_model_refuses_a_pruned_checkpoint(files, tmp_path):
    folder = prune(files, '--pruning-ratio', '0.5')
    cfg = Config.fromfile(files[0])
    cfg.work_dir = str(tmp_path / 'work')
    cfg.experiment_name = f'dense_{tmp_path.name}'
    cfg.load_from = str(folder / 'tiny_structured_pruned.pth')
    with pytest.raises(ValueError, match='PrunedModel'):
        Runner.from_cfg(cfg).test()


@pytest.mark.parametrize('lost', ['branch', 'plan', 'all'])
def test_the_test_command_refuses_weights_that_do_not_fit(
    capsys, files, tmp_path, lost
):
    path = (
        prune(files, '--pruning-ratio', '0.5') / 'tiny_structured_pruned.pth'
    )
    checkpoint = torch.load(path)
    state = checkpoint['state_dict']
    if lost == 'plan':
        del checkpoint['meta']['pruning_plan']
    else:
        for name in [n for n in state if lost in ('all', n.split('.')[0])]:
            del state[name]
        state['x'] = torch.ones(1)
    torch.save(checkpoint, path)
    with pytest.raises(SystemExit) as end:
        command(TEST)([str(files[0]), str(path), '--work-dir', str(tmp_path)])
    assert end.value.code == 2
    assert 'does not fit the model' in capsys.readouterr().err


# -- bad input -------------------------------------------------------------


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def fails(capsys, files, *flags):
    """The command ends with 2, one sentence, and nothing written."""
    folder = files[0].parent / 'out'
    before = sorted(folder.rglob('*')) if folder.exists() else None
    with pytest.raises(SystemExit) as end:
        prune(files, *flags)
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    assert len(errors) == 1
    after = sorted(folder.rglob('*')) if folder.exists() else None
    assert before == after
    return errors[0]


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--pruning-ratio', '1'], r'in [0, 1), found 1'),
        (['--pruning-ratio', '-0.1'], r'in [0, 1), found -0.1'),
        (['--pruning-ratio', 'nan'], r'in [0, 1), found nan'),
        (['--protect', 'nowhere'], "'nowhere' matches none of the"),
        (['--protect', '('], 'is no regular expression'),
        (['--device', 'tpu'], '--device is cpu, cuda or cuda:N'),
        (['--pruning-ratio', '0.99'], 'be removed; lower the sparsity'),
        (
            ['--pruning-ratio', '0.99', '--target', 'macs'],
            'asked to remove 99.0%',
        ),
        (['--target', 'params', '--round-to', '64'], '100.0% still remain'),
        (['--round-to', '0'], 'at least 1'),
        (['--for', 'tensorrt', '--round-to', '8'], 'rounds to 16'),
        (['--min-keep', '0', '--mode', 'unstructured'], 'at least 1'),
        (['--latency-runs', '-1'], 'must not be negative'),
        (['--device', 'cpu:foo'], '--device is cpu, cuda or cuda:N'),
        (['--output-dir', ''], '--output-dir is empty'),
        (['--cfg-options', 'model.foo=1'], 'cannot be built'),
        (['--retrain'], '--retrain goes with --fine-tune'),
        (['--cfg-options', 'width'], 'takes KEY=VALUE'),
        (['--cfg-options', 'pruning.type=mmprune.Nobody'], 'Nobody'),
    ],
)
def test_bad_flags(capsys, files, flags, message):
    assert message in fails(capsys, files, *flags)


def test_cuda_asked_for_and_absent(capsys, files, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert 'sees no CUDA device' in fails(capsys, files, '--device', 'cuda')


def test_unknown_choice_is_told_by_argparse(files):
    with pytest.raises(SystemExit) as end:
        prune(files, '--importance', 'l3')
    assert end.value.code == 2


def broken(kind, files):
    path = files[1]
    if kind == 'missing':
        path.unlink()
    elif kind == 'truncated':
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == 'foreign':
        path.write_text('not a checkpoint')
    elif kind == 'malicious':
        evil = Evil(path.with_name('code_has_run'))
        path.write_bytes(pickle.dumps({'state_dict': evil}))
    elif kind == 'malicious zip':
        evil = Evil(path.with_name('code_has_run'))
        torch.save({'state_dict': evil}, path)
    elif kind == 'other model':
        torch.save({'state_dict': {'conv1.weight': torch.ones(2)}}, path)
    elif kind == 'wrong types':
        torch.save({'state_dict': [1], 'meta': 'x'}, path)
    elif kind == 'nested':
        torch.save({'model': torch.load(path)['state_dict']}, path)
    elif kind == 'not finite':
        state = torch.load(path)['state_dict']
        state['one.bias'][3] = float('nan')
        torch.save({'state_dict': state}, path)
    elif kind == 'a part':
        state = torch.load(path)['state_dict']
        part = {k: v for k, v in state.items() if k.startswith('branch')}
        torch.save({'state_dict': part}, path)
    return files


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('missing', 'dense.pth'),
        ('truncated', 'dense.pth'),
        ('foreign', 'dense.pth'),
        ('malicious', '--trust-checkpoint'),
        ('malicious zip', '--trust-checkpoint'),
        ('other model', 'No key fits'),
        ('wrong types', 'the file has meta, state_dict'),
        ('nested', 'the file has model'),
        ('not finite', 'one.bias holds NaN'),
        ('a part', 'keys are missing (stem.weight, stem.bias, one.weight'),
    ],
)
def test_bad_checkpoints(capsys, files, kind, message):
    assert message in fails(capsys, broken(kind, files))
    assert not files[1].with_name('code_has_run').exists()


def test_trust_is_the_explicit_way_around(files):
    state = torch.load(files[1])['state_dict']
    torch.save({'state_dict': state, 'extra': Harmless()}, files[1])
    folder = prune(files, '--trust-checkpoint')
    assert (folder / 'report.md').exists()


class Harmless:
    """A class of the user's, which the safe loader cannot know."""


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('x = 1\n', 'has no `model`'),
        ('model = dict(type=\n', 'cannot be read as an mmengine config'),
        ("_base_ = './nowhere.py'\n", 'nowhere.py'),
        ("model = dict(type='Nobody')\n", 'Nobody'),
    ],
)
def test_bad_configs(capsys, files, text, message):
    write_config(files[0].parent, text)
    assert message in fails(capsys, files)


def test_missing_config(capsys, files):
    files[0].unlink()
    assert 'no config at' in fails(capsys, files)


def test_config_that_does_not_say_how_to_prune(capsys, files):
    text = CONFIG.replace('pruning = ', 'other = ')
    write_config(files[0].parent, text)
    assert 'no `pruning` entry' in fails(capsys, files)


def test_another_run_is_not_overwritten(capsys, files):
    folder = prune(files)
    assert '--force' in fails(capsys, files)
    stamp = (folder / 'report.json').stat().st_mtime_ns
    prune(files, '--force')
    assert (folder / 'report.json').stat().st_mtime_ns > stamp


def test_files_of_an_older_run_go_with_force(files):
    folder = prune(files)
    (folder / 'notes.txt').write_text('mine')
    prune(files, '--force', '--mode', 'structured')
    names = {p.name for p in folder.iterdir()}
    assert 'tiny_pruned.pth' not in names
    assert {'notes.txt', 'tiny_structured_pruned.pth'} < names


def test_a_protected_group_keeps_its_weights_in_both_modes(files):
    folder = prune(files, '--protect', '^branch.0$', '--pruning-ratio', '0.9')
    state = torch.load(folder / 'tiny_pruned.pth')['state_dict']
    assert state['branch.0.weight'].all()
    assert not state['branch.2.weight'].all()


def test_what_writes_for_a_protected_weight_is_not_protected(files):
    folder = prune(files, '--protect', '^branch.2.', '--pruning-ratio', '0.9')
    state = torch.load(folder / 'tiny_pruned.pth')['state_dict']
    assert state['branch.2.weight'].all()
    assert not state['branch.0.weight'].all()


def test_a_weight_that_no_group_has_can_be_protected(files):
    folder = prune(files, '--protect', 'scored.2.weight')
    state = torch.load(folder / 'tiny_pruned.pth')['state_dict']
    assert state['scored.2.weight'].all()


def test_the_report_names_groups_that_the_criterion_cannot_score(files):
    folder = prune(files, '--importance', 'bn_scale')
    report = json.loads((folder / 'report.json').read_text())
    reasons = {g['group']: g['dense_because'] for g in report['groups']}
    assert reasons['two'] == 'BNScale has no score for it'


def test_the_traceback_shows_on_demand(files, monkeypatch):
    monkeypatch.setenv('MMPRUNE_TRACEBACK', '1')
    with pytest.raises(ValueError, match='found 2'):
        prune(files, '--pruning-ratio', '2')


def test_output_that_is_a_file_or_read_only(capsys, files, monkeypatch):
    (files[0].parent / 'out').write_text('')
    assert 'is a file' in fails(capsys, files)
    (files[0].parent / 'out').unlink()
    monkeypatch.setattr(os, 'access', lambda *_: False)  # root may write all
    assert 'cannot be written' in fails(capsys, files)


def test_a_pruned_checkpoint_is_not_pruned_again(capsys, files):
    pruned = prune(files) / 'tiny_structured_pruned.pth'
    message = fails(capsys, (files[0], pruned), '--force')
    assert 'has been pruned before' in message


def test_a_failing_write_leaves_nothing_behind(files, monkeypatch):
    folder = files[0].parent / 'out'

    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises((OSError, SystemExit)):
        prune(files)
    assert not folder.exists()


# -- what it shows ---------------------------------------------------------


@pytest.mark.parametrize('mode', ['both', 'structured', 'unstructured'])
def test_stage_counters_end_at_the_last_of_them(files, capsys, mode):
    prune(files, '--mode', mode)
    lines = capsys.readouterr().err.splitlines()
    count = len(lines)
    assert [line.split()[0] for line in lines] == [
        f'[{i + 1}/{count}]' for i in range(count)
    ]
    assert lines[-1].endswith('writing')


def test_a_run_is_summed_up_in_about_ten_lines(files, capsys):
    folder = prune(files, '--fine-tune', '--fine-tune-epochs', '1')
    lines = capsys.readouterr().out.splitlines()
    lines = lines[[x[:7] for x in lines].index('| model') :]
    assert len(lines) <= 11
    heads = [cell.strip() for cell in lines[0].strip('|').split('|')]
    assert heads[:2] == ['model', 'params (M)'] and heads[-1] == 'mean'
    rows = [line.split('|')[1].strip() for line in lines[2:6]]
    assert rows == ['dense', 'unstructured', 'structured', 'recovered']
    assert lines[-2] == f'all about it: {folder / "report.html"}'


def test_the_next_command_can_be_pasted_anywhere(tmp_path, capsys):
    place = tmp_path / 'a folder'
    place.mkdir()
    files = write_config(place), write_checkpoint(place)
    folder = prune(files)
    last = capsys.readouterr().out.splitlines()[-1]
    python, *words = shlex.split(last.removeprefix('next: '))
    assert python == sys.executable
    assert words == [
        str(TEST),
        str(files[0]),
        str(folder / 'tiny_structured_pruned.pth'),
    ]


def test_metrics_that_matter_are_few():
    zeros = {f'zero_{i}': 0.0 for i in range(50)}
    some = {f'm{i}': i + 1.0 for i in range(9)}
    assert metrics_that_matter([{**zeros, **some}]) == list(some)[:6]
    wanted = ['best', 'zero_3', 'nowhere']
    assert metrics_that_matter([zeros, dict(best=1)], wanted) == wanted[:2]


# -- a dry run -------------------------------------------------------------


def test_a_dry_run_says_what_would_be_cut_and_writes_nothing(files, capsys):
    flags = ['--pruning-ratio', '0.5', '--dry-run']
    folder = prune(files, *flags)
    assert not folder.exists()
    lines = capsys.readouterr().out.splitlines()
    rows = [[c.strip() for c in line.strip('|').split('|')] for line in lines]
    table = {row[0]: row[1:] for row in rows if len(row) > 1}
    assert table['kind'][:4] == ['groups', 'kept dense', 'units', 'removed']
    # Channels of one and two (32 + 16), of which 24 go; the stem is frozen.
    # Neurons of the branch (64); others have a LayerNorm or are outputs.
    assert table['channel'][:4] == ['2', '1', '48', '24 (50.0%)']
    assert table['neuron'][:4] == ['1', '3', '64', '32 (50.0%)']
    assert 'unstructured: 50.0% of 11,008 weights would be zero' in lines
    assert lines[-1] == '--dry-run: nothing was written'
    prune(files, *flags[:2], '--mode', 'structured')
    report = json.loads((folder / 'report.json').read_text())['models']
    for column, unit in ((4, 'params'), (5, 'macs')):
        share = float(table['all'][column].split('(')[1].rstrip('%)')) / 100
        left = report['structured'][unit] / report['dense'][unit]
        assert share == pytest.approx(1 - left, abs=0.002)


def test_a_dry_run_beside_another_run_leaves_it_alone(files, capsys):
    folder = prune(files)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
    prune(files, '--dry-run', '--mode', 'unstructured', '--pattern', '2:4')
    assert '2:4 of 11,008 weights would be zero' in capsys.readouterr().out
    wide = ['--pattern', '2:4', '--pattern-from', '16']
    prune(files, '--dry-run', '--mode', 'unstructured', *wide)
    assert '2:4 of 10,240 weights would be zero' in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
