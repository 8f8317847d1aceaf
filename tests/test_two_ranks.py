"""What the hooks do is the same on every rank."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import differing

GRADUAL = ('weights', 'units', 'taylor', 'kgsp')


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """Returns what both ranks ended with, by case."""
    folder = tmp_path_factory.mktemp('ranks')
    script = Path(__file__).with_name('two_ranks.py')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    done = subprocess.run(
        [*command, '--nproc-per-node', '2', str(script), str(folder)],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        case: [torch.load(folder / f'{case}_{rank}.pt') for rank in range(2)]
        for case in (*GRADUAL, 'masked', 'distilled', 'rounded')
    }


@pytest.mark.parametrize('case', GRADUAL)
def test_gradual_pruning_masks_the_same(ranks, case):
    # Rank 1 was given other scores and had to follow rank 0.
    one, other = ranks[case]
    assert (one['rank'], other['rank']) == (0, 1)
    assert any((~mask).any() for mask in one['masks'].values())
    assert differing(one['masks'], other['masks']) == []


@pytest.mark.parametrize('case', [*GRADUAL, 'masked', 'distilled', 'rounded'])
def test_weights_are_the_same(ranks, case):
    one, other = ranks[case]
    assert differing(one['weights'], other['weights']) == []
    assert len(one['weights']) == 6


@pytest.mark.parametrize('case', [*GRADUAL, 'masked'])
def test_masked_weights_are_zero(ranks, case):
    for rank in ranks[case]:
        for name, mask in rank['masks'].items():
            assert rank['weights'][name][~mask].abs().sum() == 0
            assert (rank['weights'][name][mask] != 0).any()
