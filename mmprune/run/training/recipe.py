"""From the config of the dense model to the one that trains a pruned one."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import OPTIMIZERS, init_default_scope

from ...atomic_file import write_whole
from ...checkpoints.writing import name_imports, pruned_model_config
from .length import Length

# The checkpoint that a training folder starts from; it carries weights, plan
# and, to fine-tune, the optimizer's state.
START = 'start.pth'
# mmengine's own, for a config without one.
_CHECKPOINT = dict(type='CheckpointHook', interval=1)


@dataclass(frozen=True)
class Recipe:
    """How a pruned model is trained.

    Args:
        folder: Where, inside the folder of the run.
        lr_factor: The config's learning rate times this is the new one.
        warmup: Iterations of linear warm-up.
        carry_on: Whether epoch and optimizer state of the dense checkpoint
            are carried on.
    """

    folder: str
    lr_factor: float
    warmup: int
    carry_on: bool


FINE_TUNE = Recipe('fine_tuned', 0.1, 500, carry_on=True)
RETRAIN = Recipe('retrained', 0.5, 1000, carry_on=False)


def check_trainable(cfg: Config) -> None:
    """Refuses a config that this workflow cannot train.

    Raises:
        ValueError: If something is missing or of another kind.
    """
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(key) is None:
            raise ValueError(
                f'{cfg.filename} has no `{key}`, so nothing can be trained; '
                'give a config with training data, or leave --fine-tune out'
            )
    optimizer = cfg.optim_wrapper.get('optimizer')
    if not isinstance(optimizer, dict) or 'lr' not in optimizer:
        raise ValueError(
            f'{cfg.filename} has no single `optim_wrapper.optimizer.lr`, '
            'which fine-tuning and retraining scale; give one optimizer '
            'with its learning rate'
        )


def training_config(
    cfg: Config,
    recipe: Recipe,
    length: Length,
    log: Callable[[str], None] = print,
) -> Config:
    """Returns the config of a run that trains a pruned model.

    It stands alone. Paths of the run's own files begin with
    ``{{ fileDirname }}``, so they are found beside the written text and the
    folder may move.

    Args:
        cfg: Config of the dense model; it is left as it is.
        recipe: Fine-tune or retrain.
        length: How long.
        log: Called with a line when something is not as asked for.
    """
    new = copy.deepcopy(cfg)
    start = '{{ fileDirname }}/' + START
    new.model = pruned_model_config(
        cfg.model.to_dict(), start, cfg.get('data_preprocessor')
    )
    new.load_from = start
    new.resume = recipe.carry_on
    new.work_dir = '{{ fileDirname }}'
    before = _set_length(new, length)
    new.optim_wrapper.optimizer.lr *= recipe.lr_factor
    schedulers = new.get('param_scheduler') or []
    if isinstance(schedulers, dict):
        schedulers = [schedulers]
    new.param_scheduler = schedule(
        schedulers, recipe, length, length.steps / before, log
    )
    name_imports(new)
    new.pop('pruning', None)
    return new


def _set_length(cfg: Config, length: Length) -> int:
    """Sets the loop of a training config; returns its length before."""
    if str(cfg.train_cfg.get('type')) == 'mmprune.IterativePruningLoop':
        # Each of its rounds is a training; here is one, of a pruned model.
        old = cfg.train_cfg
        cfg.train_cfg = dict(by_epoch=True, max_epochs=old.epochs)
        cfg.train_cfg.val_interval = old.get('val_interval', 1)
    key = 'max_epochs' if length.by_epoch else 'max_iters'
    before = cfg.train_cfg.get(key, length.steps)
    cfg.train_cfg[key] = length.last
    if not length.by_epoch:
        _count_iterations(cfg, length)
    return before


def _count_iterations(cfg: Config, length: Length) -> None:
    """Makes checkpoints and logs count iterations, in place."""
    checkpoint = checkpoint_hook(cfg)
    if checkpoint and checkpoint.get('by_epoch', True):
        interval = checkpoint.get('interval', 1) * length.epoch_length
        checkpoint.by_epoch = False
        checkpoint.interval = min(interval, length.steps)
    processor = dict(cfg.get('log_processor') or {})
    cfg.log_processor = dict(dict(by_epoch=False), **processor)
    if length.first:
        _add_hook(cfg, 'UnreadDataHook', iterations=length.first)


def checkpoint_hook(cfg: Config) -> ConfigDict | None:
    """Returns the checkpoint hook of a config, to be changed in place."""
    if not cfg.get('default_hooks'):
        cfg.default_hooks = {}
    if 'checkpoint' not in cfg.default_hooks:
        cfg.default_hooks.checkpoint = ConfigDict(_CHECKPOINT)
    return cfg.default_hooks.checkpoint


def _add_hook(cfg: Config, name: str, **options: Any) -> bool:
    """Adds one of our hooks; returns whether the config had none."""
    hooks = list(cfg.get('custom_hooks') or [])
    # Not mmengine's DistSamplerSeedHook, which tells a sampler its epoch.
    missing = name not in {h['type'].rpartition('.')[2] for h in hooks}
    if missing:
        hooks.append(dict(type=f'mmprune.{name}', **options))
    cfg.custom_hooks = hooks
    return missing


def schedule(
    schedulers: list[dict],
    recipe: Recipe,
    length: Length,
    stretch: float,
    log: Callable[[str], None] = print,
) -> list[dict]:
    """Returns the schedulers of a run: a warm-up, and the config's others.

    All steps count from the start of the run, also when epochs are carried
    on: schedulers of mmengine count their own steps. ``stretch`` is the
    length of the run over that of the config.
    """
    iterations = length.iterations
    factor = 1 / 3
    rest = []
    for scheduler in schedulers:
        if _is_warmup(scheduler):
            factor = scheduler.get('start_factor', factor)
        else:
            rest.append(_stretched(scheduler, stretch, recipe, length))
    steps = min(recipe.warmup, iterations // 2)
    if steps < recipe.warmup:
        log(
            f'the warm-up of {recipe.warmup} iterations is shortened to '
            f'{steps}: the run has only {iterations}'
        )
    # With fewer than two steps mmengine's LinearLR never leaves the first.
    if steps < 2:
        return rest
    warmup = dict(
        type='LinearLR',
        start_factor=factor,
        by_epoch=False,
        begin=0,
        end=steps,
    )
    return [warmup, *rest]


def _is_warmup(scheduler: dict) -> bool:
    """Whether it raises the rate at the start of a training."""
    return (
        scheduler.get('type') in ('LinearLR', 'ConstantLR')
        and scheduler.get('begin', 0) == 0
        and scheduler.get('end_factor', 1.0) == 1.0
        and 'end' in scheduler
    )


def _stretched(
    scheduler: dict, stretch: float, recipe: Recipe, length: Length
) -> dict:
    new = dict(scheduler)
    total = length.iterations
    if new.get('by_epoch', True):
        total = math.ceil(total / length.epoch_length)
    for key in ('begin', 'T_max', 'step_size', 'total_steps', 'total_iters'):
        if new.get(key):
            new[key] = max(1, round(new[key] * stretch))
    if 'milestones' in new:
        new['milestones'] = [
            max(1, round(m * stretch)) for m in new['milestones']
        ]
    end = scheduler.get('end')
    new['end'] = total if end is None else max(1, round(end * stretch))
    for key in ('eta_min', 'eta_max'):
        if new.get(key):
            new[key] *= recipe.lr_factor
    return new


def with_plan(cfg: Config, sparse: bool) -> None:
    """Adds the hooks that keep plan and zeros, in place."""
    for name in ('PlanHook', 'MaskHook') if sparse else ('PlanHook',):
        _add_hook(cfg, name)


def with_safety(
    cfg: Config,
    seed: int | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Makes a training survive a stop at any moment, in place.

    Checkpoints are written whole or not at all, and a resumed run ends with
    the weights of one that was never stopped. What the config says itself
    stays: a checkpoint hook of another type or none, a seed hook, a seed.

    Args:
        cfg: A training config.
        seed: For a config without one.
        log: Called with a line when a setting of the config is changed.

    Raises:
        ValueError: If nobody has registered its optimizer.
    """
    _check_optimizer(cfg)
    checkpoint = checkpoint_hook(cfg)
    if checkpoint and checkpoint.get('type') == 'CheckpointHook':
        checkpoint.type = 'mmprune.SafeCheckpointHook'
    persistent = cfg.train_dataloader.get('persistent_workers')
    if _add_hook(cfg, 'SeedHook') and persistent:
        log(
            'persistent_workers is switched off for training: no '
            'checkpoint could hold the random state of its workers'
        )
        cfg.train_dataloader.persistent_workers = False
    if seed is not None:
        randomness = dict(cfg.get('randomness') or {})
        if randomness.get('seed') is None:
            randomness['seed'] = seed
        cfg.randomness = randomness
    name_imports(cfg)


def _check_optimizer(cfg: Config) -> None:
    # mmengine would say that None is not callable.
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    wrapper = cfg.get('optim_wrapper') or {}
    kind = (wrapper.get('optimizer') or {}).get('type')
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        raise ValueError(
            f'`optim_wrapper.optimizer` of {cfg.filename} is of the type '
            f'{kind!r}, which is not in the registry'
        )


def with_amp(cfg: Config) -> None:
    """Trains in mixed precision, in place.

    Raises:
        ValueError: If the config has a wrapper of its own.
    """
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(
            f'--amp takes the place of OptimWrapper, the config has {kind}; '
            'leave --amp out or change the config'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def scale_lr(cfg: Config, world_size: int) -> float:
    """Scales the learning rate to the batch of all ranks, in place.

    Returns:
        The factor.

    Raises:
        ValueError: If the config does not say what its rate is meant for.
    """
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if not base:
        raise ValueError(
            '--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) '
            f'in {cfg.filename}'
        )
    factor = cfg.train_dataloader.batch_size * world_size / base
    cfg.optim_wrapper.optimizer.lr *= factor
    return factor


def write_config(cfg: Config, folder: Path) -> Path:
    """Writes a training config under the name of the one it came from."""
    path = folder / Path(cfg.filename).name
    write_whole(path, cfg.pretty_text.encode())
    return path
