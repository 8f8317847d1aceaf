"""What a model loses without the units of a group decides how many go."""

import json
import runpy

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny_project import write_checkpoint, write_config
from torch import nn

from mmprune.groups import PruneGroup, Slice
from mmprune.importance import Sensitivity
from mmprune.importance.sensitivity import worse
from mmprune.plan import PruningPlan
from mmprune.pruners import StructuredPruner
from mmprune.run.options import PruningOptions
from mmprune.statistics import Statistics

TENSORS = dict(
    a=torch.tensor([[4.0], [1.0], [3.0], [2.0]]),
    b=torch.tensor([[1.0], [2.0], [3.0], [4.0]]),
)
GROUPS = [PruneGroup(n, 'channel', 4, (Slice(n),)) for n in TENSORS]
L1 = "Magnitude(p=1, reduce='mean', sides='both')"


def write(path, a, b, dense=1.0, higher_is_better=False, importance=L1):
    groups = {
        name: dict(quality=quality)
        for name, quality in (('a', a), ('b', b))
        if quality
    }
    found = dict(
        dense=dense,
        higher_is_better=higher_is_better,
        importance=importance,
        groups=groups,
    )
    path.write_text(json.dumps(found))
    return str(path)


def test_a_unit_is_worth_what_the_model_loses_up_to_it(tmp_path):
    path = write(tmp_path / 's.json', {'0.5': 1.2, '0.75': 2.2}, {})
    criterion = Sensitivity(path)
    stats = Statistics(TENSORS)
    # Order 1, 3, 2, 0; 0.1 at a quarter, 0.2, 1.2, and as steep beyond.
    found = criterion(GROUPS[0], stats).tolist()
    assert found == pytest.approx([2.2, 0.1, 1.2, 0.2])
    assert criterion(GROUPS[1], stats) is None


def test_a_score_that_falls_is_a_loss(tmp_path):
    path = write(tmp_path / 's.json', {'0.5': 0.8}, {}, 1.0, True)
    found = Sensitivity(path)(GROUPS[0], Statistics(TENSORS)).tolist()
    assert found == pytest.approx([0.4, 0.1, 0.3, 0.2])


def test_what_noise_makes_better_is_levelled():
    found = worse({0.25: -1.0, 0.5: 2.0, 0.75: 1.0}, np.array([0.25, 0.75]))
    assert found.tolist() == [0, 2]


def test_groups_are_cut_until_all_cost_the_same(tmp_path):
    path = write(tmp_path / 's.json', {'0.5': 1.1}, {'0.5': 1.5})
    pruner = StructuredPruner(0.5, dict(type='mmprune.Sensitivity', path=path))
    plan = pruner(nn.Module(), GROUPS, stats=Statistics(TENSORS))
    # 0.05, 0.1, 0.15 and 0.25 against 0.2
    assert plan.keep == dict(a=[0], b=[1, 2, 3])


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{', 'is no file of tools/sensitivity.py'),
        ('{"groups": {}}', 'is no file of tools/sensitivity.py'),
    ],
)
def test_another_file_is_refused(tmp_path, text, message):
    path = tmp_path / 's.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Sensitivity(str(path))
    with pytest.raises(ValueError, match='there is no such file'):
        Sensitivity(str(tmp_path / 'none.json'))


def test_another_criterion_than_the_measured_one_is_refused(tmp_path):
    path = write(tmp_path / 's.json', {'0.5': 2.0}, {}, importance='Taylor()')
    with pytest.raises(ValueError, match='was measured with Taylor'):
        Sensitivity(path)


def test_single_weights_have_no_sensitivity():
    with pytest.raises(ValueError, match='--sensitivity says what units cost'):
        PruningOptions(mode='unstructured', sensitivity='s.json')


# -- the command -----------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    return [str(write_config(tmp_path)), str(write_checkpoint(tmp_path))]


def run(tool, *flags):
    runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'))['main'](
        list(map(str, flags))
    )


def test_the_command_measures_every_group_and_pruning_reads_it(
    files, tmp_path, capsys
):
    out = tmp_path / 'curves'
    run('sensitivity', *files, '--output-dir', out, '--ratios', '0.25', '0.5')
    found = json.loads((out / 'sensitivity.json').read_text())
    assert {*found['groups']} == {'one', 'two', 'branch.0'}
    for group in found['groups'].values():
        assert [*group['quality']] == ['0.25', '0.5']
    assert (out / 'sensitivity.png').read_bytes()[:4] == b'\x89PNG'
    assert 'the most sensitive' in capsys.readouterr().out
    pruned = tmp_path / 'pruned'
    run(
        'prune_and_retrain',
        *(*files, '--output-dir', pruned, '--mode', 'structured'),
        *('--latency-runs', 0, '--sensitivity', out / 'sensitivity.json'),
    )
    plan = PruningPlan.load(pruned / 'plan.json')
    assert 'Sensitivity' in plan.provenance['importance']


def test_a_stopped_run_measures_what_is_missing(files, tmp_path):
    out = tmp_path / 'curves'
    flags = [*files, '--output-dir', out, '--ratios', '0.5']
    run('sensitivity', *flags)
    path = out / 'sensitivity.json'
    whole = json.loads(path.read_text())
    stopped = json.loads(path.read_text())
    stopped['groups']['one']['quality']['0.5'] = 7.0  # not measured again
    del stopped['groups']['two']
    path.write_text(json.dumps(stopped))
    run('sensitivity', *flags)
    again = json.loads(path.read_text())
    assert again['groups']['one']['quality'] == {'0.5': 7.0}
    assert again['groups']['two'] == whole['groups']['two']


def test_the_file_of_another_run_stays(files, tmp_path, capsys):
    out = tmp_path / 'curves'
    flags = [*files, '--output-dir', out, '--ratios', '0.5']
    run('sensitivity', *flags)
    with pytest.raises(SystemExit):
        run('sensitivity', *flags, '--importance', 'l2')
    assert 'is of another run; choose another' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--ratios', '1.5'], '--ratios are fractions between 0 and 1'),
        (['--quality', 'mAP'], 'the test measures'),
        (['--protect', 'none'], "'none' matches no"),
    ],
)
def test_bad_input_is_one_sentence(files, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        run('sensitivity', *files, '--output-dir', tmp_path / 'o', *flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
