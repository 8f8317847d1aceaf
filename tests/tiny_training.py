"""A training run of a second, with everything that draws random numbers."""

import copy
import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

import mmprune  # noqa: F401  (lets mmengine read its own checkpoints)
from mmprune.adapters import ffn_groups
from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.registry import TASK_UTILS

SIZE = 12
_numbers = itertools.count()


@MODELS.register_module()
class TinyMLP(BaseModel):
    """Two hidden layers with dropout."""

    def __init__(self, width: int = 8, dropout: float = 0.2, **kwargs) -> None:
        super().__init__(**kwargs)
        self.net = nn.Sequential(
            nn.Linear(4, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 3),
        )

    def forward(self, inputs, data_samples=None, mode='tensor'):
        """Returns logits or the loss."""
        logits = self.net(torch.stack(list(inputs)))
        if mode != 'loss':
            return logits
        target = torch.stack(list(data_samples))
        return {'loss': F.cross_entropy(logits.float(), target)}


@DATASETS.register_module()
class NoisyPoints(Dataset):
    """Labelled points, jittered anew each time by numpy's random state."""

    def __init__(self, size: int = SIZE, jitter: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(3)
        self.points = torch.randn(size, 4, generator=generator)
        self.jitter = jitter

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict:
        noise = torch.from_numpy(np.random.randn(4)).float()
        point = self.points[index]
        return dict(
            inputs=point + self.jitter * noise,
            data_samples=point[:3].argmax(),
        )


@TASK_UTILS.register_module(force=True)
class TinyMLPFamily:
    """Groups of the model, as a config's ``pruning`` names them."""

    def __init__(self, cfg=None) -> None:
        self.cfg = cfg

    def groups(self, model):
        """Yields the hidden units."""
        yield from ffn_groups(model)


def config(work_dir: Path, epochs: int = 4, **changes) -> Config:
    """Returns the config of a run; ``changes`` replace whole entries."""
    return Config(
        {
            **dict(
                work_dir=str(work_dir),
                default_scope='mmengine',
                # Two Runners of one second share what mmengine keeps by name.
                experiment_name=f'tiny{next(_numbers)}',
                model=dict(type='TinyMLP'),
                pruning=dict(type='mmprune.TinyMLPFamily'),
                train_dataloader=dict(
                    batch_size=3,
                    num_workers=0,
                    sampler=dict(type='DefaultSampler', shuffle=True),
                    dataset=dict(type='NoisyPoints'),
                ),
                train_cfg=dict(by_epoch=True, max_epochs=epochs),
                optim_wrapper=dict(
                    optimizer=dict(
                        type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-3
                    ),
                    clip_grad=dict(max_norm=1.0),
                ),
                param_scheduler=[
                    dict(type='CosineAnnealingLR', by_epoch=False, T_max=16)
                ],
                default_hooks=dict(
                    checkpoint=dict(
                        type='mmprune.SafeCheckpointHook', interval=1
                    ),
                    logger=dict(type='LoggerHook', interval=1),
                ),
                randomness=dict(seed=7),
                log_level='ERROR',
            ),
            **changes,
        }
    )


def run(cfg: Config) -> Runner:
    """Trains and returns the Runner."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


class Crash(BaseException):
    """Ends a run in the middle, as a signal would."""


@HOOKS.register_module()
class CrashHook(Hook):
    """Raises when an iteration is done, before anything is saved."""

    priority = 'VERY_HIGH'

    def __init__(self, after: int) -> None:
        self.after = after

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """Ends the run."""
        if runner.iter + 1 == self.after:
            raise Crash


def run_with_crash(cfg: Config, after: int, **resumed) -> Runner:
    """Trains, crashes after an iteration, and resumes in a fresh Runner.

    ``resumed`` replaces entries of the config for the second start.
    """
    broken = copy.deepcopy(cfg)
    broken.custom_hooks = [
        *cfg.get('custom_hooks', []),
        dict(type='CrashHook', after=after),
    ]
    try:
        run(broken)
    except Crash:
        # What the first process left in its generators is gone.
        torch.manual_seed(99)
        np.random.seed(99)
        again = copy.deepcopy(cfg)
        again.experiment_name += 'again'
        again.resume = True
        again.update(resumed)
        return run(again)
    raise AssertionError('the run was to crash')


def final(work_dir: Path) -> dict:
    """Returns the newest checkpoint of a run."""
    return load_checkpoint_file(work_dir / 'latest.pth', mmap=False)


def differing(one: dict, other: dict) -> list[str]:
    """Returns the names of tensors, in any nesting, that are not equal."""
    first, second = dict(_tensors(one)), dict(_tensors(other))
    return sorted(first.keys() ^ second.keys()) + [
        name
        for name in sorted(first.keys() & second.keys())
        if not torch.equal(first[name], second[name])
    ]


def _tensors(value, name=''):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in ('message_hub', 'meta'):
                yield from _tensors(part, f'{name}/{key}')
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _tensors(part, f'{name}/{i}')


def sparse_checkpoint(path: Path, every: int = 2) -> dict[str, torch.Tensor]:
    """Writes a weight-sparse checkpoint; returns its masks, true = keep."""
    torch.manual_seed(5)
    model = TinyMLP()
    masks = {}
    for name in ('net.0.weight', 'net.3.weight'):
        weight = model.get_parameter(name)
        mask = torch.arange(weight.numel()).view(weight.shape) % every > 0
        weight.data *= mask
        masks[name] = mask
    plan = dict(groups=[], keep={}, sparse=dict.fromkeys(masks, 'x'))
    torch.save(
        dict(meta=dict(pruning_plan=plan), state_dict=model.state_dict()), path
    )
    return masks
