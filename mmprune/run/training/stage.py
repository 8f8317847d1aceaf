"""The training stage of a run: one pruned checkpoint to a recovered one."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import HOOKS, init_default_scope
from mmengine.visualization import Visualizer
from torch import nn

from ...atomic_file import save_checkpoint
from ...checkpoints.loading import load_checkpoint
from ...errors import blame
from ..folder import forget_training
from ..options import TrainingOptions
from .distill import distilled
from .length import Length, asked_steps
from .recipe import (
    FINE_TUNE,
    RETRAIN,
    START,
    Recipe,
    check_trainable,
    checkpoint_hook,
    scale_lr,
    training_config,
    with_amp,
    with_plan,
    with_safety,
    write_config,
)
from .run import last_checkpoint, prepare_data
from .start import (
    add_optimizer,
    build_optimizer,
    carried_state,
    saved_order,
    start_checkpoint,
)


@dataclass(frozen=True)
class Stage:
    """A checked training, ready to be written into a folder.

    Args:
        cfg: Config of the dense model.
        dense: The dense checkpoint.
        options: What was asked for.
        seed: For a config without one.
        length: How long it is.
        dataset_meta: Meta information of the training data.
        world_size: Number of processes.
    """

    cfg: Config
    dense: Path
    options: TrainingOptions
    seed: int
    length: Length
    dataset_meta: dict | None
    world_size: int

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return recipe_of(self.options)


def recipe_of(options: TrainingOptions) -> Recipe:
    """Returns the recipe that was asked for."""
    return RETRAIN if options.retrain else FINE_TUNE


def check(
    cfg: Config,
    dense: Path,
    options: TrainingOptions,
    seed: int,
    world_size: int,
) -> Stage:
    """Refuses what cannot be trained, before anything is pruned.

    Raises:
        ValueError: If so.
    """
    check_trainable(cfg)
    steps, by_epoch = asked_steps(
        cfg, options.fine_tune_epochs, options.fine_tune_iters
    )
    epoch_length, dataset_meta = prepare_data(cfg)
    first = 0
    if recipe_of(options).carry_on:
        meta = load_checkpoint(dense).get('meta')
        key = 'epoch' if by_epoch else 'iter'
        count = meta.get(key) if isinstance(meta, dict) else None
        first = max(count, 0) if isinstance(count, int) else 0
    length = Length(steps, epoch_length, first, by_epoch)
    return Stage(cfg, dense, options, seed, length, dataset_meta, world_size)


def check_parts(stage: Stage, model: nn.Module) -> None:
    """Builds what a training is made of, so that it fails before the pruning.

    Args:
        stage: From :func:`check`.
        model: The dense model.

    Raises:
        ValueError: If the config, or the optimizer's state that is to be
            carried on, is at fault.
    """
    init_default_scope(stage.cfg.get('default_scope', 'mmengine'))
    with blame(f'{stage.cfg.filename} cannot be trained', stage.cfg):
        cfg = _config(stage, False, stage.dense.parent, lambda _: None)
        wrapper, _ = build_optimizer(model, cfg, stage.length)
        # A Runner has one before its hooks; mmdet's drawing hooks ask for it.
        Visualizer.get_instance('mmprune')
        for hook in (*cfg.custom_hooks, *cfg.default_hooks.values()):
            if hook and 'type' in hook:
                HOOKS.build(hook)
        for split in ('val', 'test'):
            if cfg.get(f'{split}_evaluator'):
                Evaluator(cfg[f'{split}_evaluator'])
    if stage.recipe.carry_on:
        dense = load_checkpoint(stage.dense)
        with _carrying(stage):
            saved_order(dense, model, wrapper, cfg)


def _carrying(stage: Stage) -> AbstractContextManager:
    return blame(
        f'the `optimizer` of {stage.dense} cannot be carried on, which '
        '--retrain does without'
    )


def prepare(
    stage: Stage,
    pruned: Path,
    folder: Path,
    resume: bool,
    log: Callable[[str], None] = print,
) -> Path:
    """Writes start checkpoint and config of a training, on one rank.

    Args:
        stage: From :func:`check`.
        pruned: The pruned checkpoint.
        folder: Where.
        resume: Whether to leave a training that has begun as it is.
        log: Called with lines about what was decided.

    Returns:
        The config.

    Raises:
        ValueError: If a training with other options is to be resumed.
    """
    checkpoint = load_checkpoint(pruned)
    sparse = bool(checkpoint['meta']['pruning_plan'].get('sparse'))
    cfg = _config(stage, sparse, folder, log)
    path = folder / Path(cfg.filename).name
    if resume and last_checkpoint(folder) is not None:
        if path.exists() and path.read_text() == cfg.pretty_text:
            return path
        raise ValueError(
            f'--resume: the training in {folder} was started with other '
            'options; give them again, or remove that folder'
        )
    folder.mkdir(parents=True, exist_ok=True)
    forget_training(folder)
    start = start_checkpoint(checkpoint, stage.length, stage.dataset_meta)
    save_checkpoint(start, folder / START)
    write_config(cfg, folder)
    if stage.recipe.carry_on:
        dense = load_checkpoint(stage.dense)
        with _carrying(stage):
            state, reason = carried_state(dense, stage.cfg, checkpoint)
        if reason:
            log(f'the optimizer starts afresh: {reason}')
        else:
            log(f'the optimizer carries on the state of {len(state)} weights')
        # Read back: only there the paths lead somewhere.
        add_optimizer(start, Config.fromfile(path), state, stage.length)
        save_checkpoint(start, folder / START)
    return path


def _config(
    stage: Stage, sparse: bool, folder: Path, log: Callable[[str], None]
) -> Config:
    options = stage.options
    cfg = training_config(stage.cfg, stage.recipe, stage.length, log)
    if options.distill is not None:
        distilled(cfg, stage.dense, folder, options.distill)
    with_plan(cfg, sparse)
    with_safety(cfg, stage.seed, log)
    checkpoint = checkpoint_hook(cfg)
    if checkpoint is not None:
        checkpoint.max_keep_ckpts = options.max_keep_ckpts
    if options.amp:
        with_amp(cfg)
    if options.auto_scale_lr:
        factor = scale_lr(cfg, stage.world_size)
        log(f'--auto-scale-lr: learning rate times {factor:g}')
    return cfg
