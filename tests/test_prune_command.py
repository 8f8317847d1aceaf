"""tools/prune_and_retrain.py and tools/test.py from the outside."""

import json
import os
import pickle
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.runner import Runner
from tiny_project import IMAGE, write_checkpoint, write_config
from tiny_pruning import TEST, command, prune, write_files

from mmprune.models import load_model
from mmprune.plan import PruningPlan
from mmprune.run.console import metrics_that_matter


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path)


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
