"""Runs of several configs, swept over devices and compared by rounds."""

import json
import signal
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from tool_modules import command

compare = command('compare_rounds')
sweep = command('sweep_vit')
# What older runs call today's entries of rounds.json.
TODAY = dict(round='round', pruned='pruned', exported='exported')
BEFORE = dict(round='state', pruned='gone', exported='shipped')


def write_run(
    folder: Path, values: list[float], pruned: list[int], keys: dict = TODAY
) -> Path:
    """A folder as a run leaves it, with one layer of four heads."""
    layer = dict(group='a', granularity='head', units=4)
    rounds = [
        {
            keys['round']: i,
            'asked': dict(head=count / 4),
            'met': dict(head=count / 4),
            'layers': [{**layer, keys['pruned']: count}],
            'metrics': {'Acc@1': value},
            'residual': None,
            'seconds': 1.0,
        }
        for i, (value, count) in enumerate(zip(values, pruned, strict=True))
    ]
    row = dict(params=100, macs=50, latency_ms=2.0)
    data = dict(
        options=dict(struct='refill'),
        rounds=rounds,
        models=dict(dense=row, structured={**row, 'params': 40, 'macs': 10}),
        masked_difference=1e-7,
    )
    data[keys['exported']] = 'pruned.pth'
    folder.mkdir()
    (folder / 'rounds.json').write_text(json.dumps(data))
    return folder


def test_a_run_of_several_models_has_a_row_for_each():
    models = {
        name: dict(params=size, macs=size, latency_ms=None)
        for name, size in (('dense', 8), ('wanda', 8), ('ptq4', 2))
    }
    data = dict(models=models, masked_difference=0.0)
    rows = compare.cost_table(dict(one=data))['rows']
    assert [row[:3] for row in rows] == [
        ['one: wanda', 8, '100.0%'],
        ['one: ptq4', 2, '25.0%'],
    ]


def test_runs_are_compared_round_by_round(tmp_path, capsys):
    one = write_run(tmp_path / 'one', [90, 80, 70], [0, 1, 2])
    two = write_run(tmp_path / 'two', [90, 70.5, 75], [0, 2, 2], BEFORE)
    out = tmp_path / 'out'
    compare.main([f'refill={one}', f'rsst={two}', '--out', str(out)])
    found = json.loads((out / 'comparison.json').read_text())
    assert found['rounds']['rows'] == [
        [0, 90, 90, 'refill = rsst'],
        [1, 80, 70.5, 'refill'],
        [2, 70, 75, 'rsst'],
    ]
    assert found['costs']['rows'][0][:5] == [
        'refill',
        40,
        '40.0%',
        10,
        '20.0%',
    ]
    assert found['runs']['rsst']['layers']['head'] == [[0, 0.5, 0.5]]
    report = json.loads((out / 'report.json').read_text())
    for section in report['sections']:
        if 'image' in section:
            assert (out / section['image']).stat().st_size > 5000
    assert '| 1 | 80 | 70.5 | refill |' in capsys.readouterr().out
    compare.main([str(one), str(two), '--lower-is-better', '--out', str(out)])
    found = json.loads((out / 'comparison.json').read_text())
    assert [row[-1] for row in found['rounds']['rows'][1:]] == ['two', 'one']
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path)])
    assert 'has no rounds.json' in capsys.readouterr().err
    (tmp_path / 'rounds.json').write_text('{}')
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path)])
    assert "has no metric 'Acc@1'" in capsys.readouterr().err


@pytest.mark.parametrize('keys', [TODAY, BEFORE])
def test_a_sweep_leaves_finished_runs_alone(tmp_path, capsys, keys):
    config = ROOT / 'projects/configs/vit/vit_tiny_digits_imp.py'
    write_run(tmp_path / config.stem, [90, 80], [0, 1], keys)
    sweep.main([str(config), '--work-dir', str(tmp_path)])
    assert (tmp_path / 'comparison.json').is_file()
    assert '->' not in capsys.readouterr().out


def test_a_sweep_uses_each_device_once_at_a_time(tmp_path, monkeypatch):
    busy, seen = set(), []

    class Run:
        returncode = 0

        def __init__(self, device):
            self.device, self.polls = device, 0

        def poll(self):
            self.polls += 1
            if self.polls < 2:
                return None
            busy.discard(self.device)
            return 0

        def terminate(self):
            raise AssertionError('nothing is left to end')

    def start(config, folder, device, options):
        assert device not in busy
        busy.add(device)
        seen.append((config, device))
        return Run(device)

    monkeypatch.setattr(sweep, 'start', start)
    monkeypatch.setattr(sweep.time, 'sleep', lambda _: None)
    waiting = [(name, tmp_path) for name in 'abcde']
    assert sweep.sweep(waiting, ['0', '1'], []) == []
    assert [name for name, _ in seen] == list('abcde')
    assert {device for _, device in seen} == {'0', '1'}


def test_a_sweep_that_is_stopped_ends_its_runs(tmp_path, monkeypatch, capsys):
    ended = []

    class Run:
        def poll(self):
            signal.raise_signal(signal.SIGTERM)

        def terminate(self):
            ended.append(self)

    monkeypatch.setattr(sweep, 'start', lambda *_: Run())
    config = ROOT / 'projects/configs/vit/vit_tiny_digits_imp.py'
    with pytest.raises(SystemExit) as end:
        sweep.main([str(config), '--work-dir', str(tmp_path)])
    assert end.value.code == 143 and len(ended) == 1
    assert 'stopped by SIGTERM' in capsys.readouterr().err


def test_a_sweep_that_cannot_be_compared_says_so(tmp_path, capsys):
    config = ROOT / 'projects/configs/vit/vit_tiny_digits_imp.py'
    folder = tmp_path / config.stem
    folder.mkdir()
    (folder / 'rounds.json').write_text('{"shipped": "x"}')
    with pytest.raises(SystemExit) as end:
        sweep.main([str(config), '--work-dir', str(tmp_path)])
    assert end.value.code == 2
    assert 'are not compared' in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r'--gpu-ids \[97\]: PyTorch sees'):
        sweep.find_devices([97])
    if not torch.cuda.is_available():
        assert sweep.find_devices(None) == ['']


def test_two_configs_of_one_name_do_not_share_a_folder(tmp_path, capsys):
    for folder in 'ab':
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'x.py').touch()
    with pytest.raises(SystemExit):
        sweep.main([str(tmp_path / folder / 'x.py') for folder in 'ab'])
    assert 'two configs have one name' in capsys.readouterr().err
