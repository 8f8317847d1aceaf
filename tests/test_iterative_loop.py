"""Rounds of training, pruning and rewinding through a real Runner."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_rounds import (
    HEADS,
    NEURONS,
    config,
    pruned_of,
    results,
    train,
    unit_values,
    units_of,
)

from mmprune.adapters import vit_groups
from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.models import build_model, load_model
from mmprune.plan import PruningPlan

ROOT = Path(__file__).resolve().parents[1]


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


# -------------------------------------------------------------- distributed


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
