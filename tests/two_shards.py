"""Masked training on two gloo ranks that share the parameters; started by
torch.distributed.run."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmprune  # noqa: E402, F401, I001  (first: it makes mmengine lighter)
from mmengine.config import Config  # noqa: E402
from tiny_training import (  # noqa: E402
    config,
    run,
    run_with_crash,
    sparse_checkpoint,
)

from mmprune.shards import local  # noqa: E402


def main(folder: Path) -> None:
    """Trains sharded, stops, resumes; writes what this rank ends with."""
    dist.init_process_group('gloo')
    rank = dist.get_rank()
    if rank == 0:
        sparse_checkpoint(folder / 'sparse.pth')
    dist.barrier()
    for name in WRAPPERS:
        runner = run(settings(folder, name, name))
        weights = dict(runner.model.module.named_parameters())
        state = runner.optim_wrapper.optimizer.state
        parts = {
            n: (local(w.data), local(state[w]['exp_avg']))
            for n, w in weights.items()
        }
        torch.save(parts, folder / f'{name}_{rank}.pt')
    run_with_crash(
        settings(folder, 'stopped', 'sharded'), after=5, load_from=None
    )
    dist.destroy_process_group()


WRAPPERS = dict(
    sharded=dict(type='mmprune.FullyShardedModel'),
    copied=dict(type='MMDistributedDataParallel', device_ids=None),
)


def settings(folder: Path, name: str, wrapper: str) -> Config:
    """Returns the config of a run on both ranks, from the sparse file."""
    return config(
        folder / name,
        launcher='pytorch',
        model_wrapper_cfg=dict(WRAPPERS[wrapper]),
        # No dropout, of which each rank would draw its own.
        model=dict(type='TinyMLP', dropout=0.0),
        load_from=str(folder / 'sparse.pth'),
        custom_hooks=[
            dict(type='mmprune.SeedHook'),
            dict(type='mmprune.MaskHook'),
        ],
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=0.05, weight_decay=0.1),
            clip_grad=dict(max_norm=0.5),
        ),
    )


if __name__ == '__main__':
    main(Path(sys.argv[1]))
