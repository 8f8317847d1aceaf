"""Rounds of pruning a small ViT on digits, watched and run to an end."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tiny_vit import VIT

HEADS, NEURONS = 2 * 4, 2 * 64
numbers = iter(range(1000))


def config(folder: Path, **train_cfg) -> Config:
    """A run of three rounds of two epochs of four iterations."""
    images = dict(
        type='mmprune.Digits', pipeline=[dict(type='mmprune.ToTensor')]
    )
    return Config(
        dict(
            default_scope='mmengine',
            work_dir=str(folder),
            experiment_name=f'{folder.name}_{next(numbers)}',
            model=dict(
                VIT,
                drop_rate=0.1,
                data_preprocessor=dict(
                    type='ImgDataPreprocessor', mean=[127.5], std=[127.5]
                ),
            ),
            # Earlier names: tests/test_rounds.py has the present ones.
            train_cfg={
                'type': 'mmprune.IterativePruningLoop',
                'epochs': 2,
                'pruning_times': 3,
                'rate': 0.5,
                'latency_runs': 0,
                **train_cfg,
            },
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.1, momentum=0.9)
            ),
            param_scheduler=[dict(type='LinearLR', by_epoch=False)],
            train_dataloader=dict(
                batch_size=16,
                num_workers=0,
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='DefaultSampler', shuffle=True),
                dataset={
                    **images,
                    'split': 'train',
                    'num_images': 64,
                    'pipeline': [
                        dict(type='mmprune.PadCrop', padding=1),
                        *images['pipeline'],
                    ],
                },
            ),
            val_dataloader=dict(
                batch_size=32,
                num_workers=0,
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset={**images, 'split': 'val', 'num_images': 32},
            ),
            val_cfg=dict(),
            val_evaluator=dict(type='mmprune.Accuracy'),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=100),
                checkpoint=dict(type='mmprune.SafeCheckpointHook', interval=1),
            ),
            custom_hooks=[dict(type='mmprune.SeedHook')],
            randomness=dict(seed=3),
        )
    )


class Watch(Hook):
    """Keeps what a test wants to see, and kills the run where it says."""

    priority = 'LOWEST'

    def __init__(self, kill_at=None, kill_epoch=None) -> None:
        self.kill_at, self.kill_epoch = kill_at, kill_epoch
        self.starts, self.rates, self.losses = {}, [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.kill_at:
            raise KeyboardInterrupt
        if runner.iter % 8 == 0:
            self.starts[runner.iter // 8] = snapshot(runner)
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=()):
        self.losses.append(outputs['loss'].item())

    def after_train_epoch(self, runner):
        if runner.epoch == self.kill_epoch:
            raise KeyboardInterrupt


def units_of(masks: dict) -> dict[str, list[int]]:
    """Group name -> units."""
    return {n: m.nonzero().flatten().tolist() for n, m in masks.items()}


def snapshot(runner) -> dict:
    """Weights, what is pruned, and the size of the optimizer's state."""
    return dict(
        weights={k: v.clone() for k, v in runner.model.state_dict().items()},
        pruned=units_of(runner.train_loop.growth.pruned),
        decaying=units_of(runner.train_loop.growth.decaying),
        state=len(runner.optim_wrapper.optimizer.state),
    )


def train(cfg: Config, **watch) -> tuple[Runner, Watch]:
    """Runs the config to its end, or to where it is killed."""
    seen = Watch(**watch)
    cfg = cfg.copy()
    cfg.experiment_name = f'{cfg.experiment_name}_{next(numbers)}'
    runner = Runner.from_cfg(cfg)
    runner.register_hook(seen)
    killed = watch.get('kill_at') or watch.get('kill_epoch')
    if killed:
        with pytest.raises(KeyboardInterrupt):
            runner.train()
    else:
        runner.train()
    return runner, seen


def results(folder: Path) -> dict:
    return json.loads((folder / 'rounds.json').read_text())


def pruned_of(entry: dict, kind: str) -> int:
    layers = entry['layers']
    return sum(x['pruned'] for x in layers if x['granularity'] == kind)


def unit_values(weights: dict, group, units: list[int]) -> torch.Tensor:
    """All weights and biases of units, in one row."""
    return torch.cat(
        [
            weights[part.tensor]
            .index_select(part.dim, part.index(units, group.size))
            .flatten()
            for part in group.slices
        ]
    )
