"""Gradual pruning on two gloo ranks; started by torch.distributed.run."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmprune  # noqa: E402, F401, I001  (first: it makes mmengine lighter)
from mmengine.runner import Runner  # noqa: E402
from tiny_training import (  # noqa: E402
    TinyMLP,
    config,
    run,
    sparse_checkpoint,
)

from mmprune.masks import keep_masks  # noqa: E402
from mmprune.pruners import WeightPruner  # noqa: E402

PRUNERS = dict(
    weights=dict(type='mmprune.WeightPruner'),
    units=dict(
        type='mmprune.StructuredPruner',
        importance=dict(type='mmprune.Random', seed=int(os.environ['RANK'])),
    ),
    taylor=dict(
        type='mmprune.StructuredPruner', importance=dict(type='mmprune.Taylor')
    ),
    kgsp=dict(
        type='mmprune.StructuredPruner',
        importance=dict(type='mmprune.Mixed'),
        normalize=None,
    ),
)


def main(folder: Path) -> None:
    """Trains each case and writes what this rank ends with."""
    dist.init_process_group('gloo')
    rank = dist.get_rank()
    for case, pruner in PRUNERS.items():
        hook = dict(
            type='mmprune.GradualPruningHook',
            pruner=pruner,
            schedule=dict(
                type='mmprune.CubicSchedule', begin=1, end=7, final=0.6
            ),
        )
        if case == 'weights':
            disturb(rank)
        runner = train(folder / case, hook)
        save(folder, case, rank, runner, masks_of(runner))
    masks = sparse_checkpoint(folder / f'sparse_{rank}.pth')
    load_from = str(folder / f'sparse_{rank}.pth')
    hook = dict(type='mmprune.MaskHook')
    runner = train(folder / 'masked', hook, load_from=load_from)
    save(folder, 'masked', rank, runner, masks)
    model = dict(
        type='mmprune.DistilledModel',
        student=dict(type='TinyMLP'),
        teacher=dict(type='TinyMLP'),
        teacher_checkpoint=load_from,
        terms=[dict(source='net.3'), dict(loss='kl')],
    )
    runner = train(
        folder / 'distilled', dict(type='mmprune.PlanHook'), model=model
    )
    save(folder, 'distilled', rank, runner, {})
    model = dict(
        type='mmprune.FakeQuantizedModel',
        model=dict(type='TinyMLP'),
        scheme=dict(group_size=4),
    )
    runner = train(
        folder / 'rounded', dict(type='mmprune.PlanHook'), model=model
    )
    save(folder, 'rounded', rank, runner, {})
    dist.destroy_process_group()


def train(work_dir: Path, hook: dict, **changes) -> Runner:
    """Trains under DDP on both ranks."""
    return run(
        config(
            work_dir,
            launcher='pytorch',
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', device_ids=None
            ),
            custom_hooks=[dict(type='mmprune.SeedHook'), hook],
            **changes,
        )
    )


def masks_of(runner: Runner) -> dict:
    """Returns the masks that the hook of this rank holds."""
    (hook,) = (
        h for h in runner.hooks if type(h).__name__ == 'GradualPruningHook'
    )
    return keep_masks(hook._masking.regions)


def save(
    folder: Path, case: str, rank: int, runner: Runner, masks: dict
) -> None:
    """Writes what this rank ends with."""
    weights = dict(runner.model.module.named_parameters())
    torch.save(
        dict(rank=rank, masks=masks, weights=weights),
        folder / f'{case}_{rank}.pt',
    )


def disturb(rank: int) -> None:
    """Lets this rank alone score the weights otherwise."""
    real = WeightPruner.masks

    def masks(self, model, before=None, names=None, stats=None):
        if rank:
            model, stats = TinyMLP(), None
        return real(self, model, before, names, stats)

    WeightPruner.masks = masks


if __name__ == '__main__':
    main(Path(sys.argv[1]))
