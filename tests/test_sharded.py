"""Masks on parameters that are split over two ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import differing, final, sparse_checkpoint
from torch import nn

from mmprune.packing import unpack_masks


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """What the runs of both ranks wrote."""
    folder = tmp_path_factory.mktemp('shards')
    script = Path(__file__).with_name('two_shards.py')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    done = subprocess.run(
        [*command, '--nproc-per-node', '2', str(script), str(folder)],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def masks(tmp_path) -> dict[str, torch.Tensor]:
    """The masks that the runs began with, true = keep."""
    return sparse_checkpoint(tmp_path / 'sparse.pth')


def parts(folder: Path, case: str) -> list[dict]:
    """Weights and momentum of each rank, by name."""
    return [torch.load(folder / f'{case}_{rank}.pt') for rank in range(2)]


def test_each_rank_holds_half(folder):
    for part in parts(folder, 'sharded'):
        assert part['net.0.weight'][0].shape == (4, 4)
    for part in parts(folder, 'copied'):
        assert part['net.0.weight'][0].shape == (8, 4)


def test_weights_and_momentum_of_every_part_stay_sparse(folder, masks):
    for which in range(2):
        for name, mask in masks.items():
            split = parts(folder, 'sharded')
            whole = torch.cat([part[name][which] for part in split])
            assert whole[~mask].abs().max() == 0
            assert (whole[mask] != 0).any()


def test_a_sharded_run_ends_as_one_with_copies(folder):
    one = final(folder / 'sharded')['state_dict']
    other = final(folder / 'copied')['state_dict']
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-4, atol=1e-5)


def test_its_checkpoint_is_whole(folder, masks):
    saved = final(folder / 'sharded')
    found, _ = unpack_masks(saved['pruning_masks'])
    assert differing(found, masks) == []
    plain = final(folder / 'copied')
    for index, state in plain['optimizer']['state'].items():
        mine = saved['optimizer']['state'][index]
        assert {k: v.shape for k, v in mine.items()} == {
            k: v.shape for k, v in state.items()
        }
        assert all(type(value) is torch.Tensor for value in mine.values())


def test_a_resumed_sharded_run_ends_bit_identical(folder):
    one, other = final(folder / 'sharded'), final(folder / 'stopped')
    assert other['meta']['epoch'] == 4
    assert differing(one, other) == []


@pytest.mark.parametrize(
    'kind', ['MMFullyShardedDataParallel', 'FullyShardedModel']
)
def test_parameters_that_are_not_whole_are_refused_to_choose_from(kind):
    from mmprune.sparsifying.runner_parts import plain_model

    class Runner:
        model = type(kind, (nn.Module,), {})()

    with pytest.raises(ValueError, match='chosen from whole parameters'):
        plain_model(Runner())
