"""The training stage of a run: one pruned checkpoint to a recovered one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ...atomic_file import save_checkpoint
from ...checkpoints.reading import load_checkpoint_file
from .distill import distilled
from .recipe import (
    START,
    Length,
    Recipe,
    check_trainable,
    scale_lr,
    training_config,
    with_amp,
    with_plan,
    with_safety,
    write_config,
)
from .run import last_checkpoint, prepare_data
from .start import add_optimizer, carried_state, start_checkpoint


@dataclass(frozen=True)
class Wanted:
    """What the command line asks of a training.

    Args:
        recipe: Fine-tune or retrain.
        epochs: Of this run.
        seed: For a config without one.
        amp: Whether in mixed precision.
        auto_scale_lr: Whether the learning rate follows the batch size.
        distill: Weight of the distillation loss, ``None`` for none.
        max_keep: Checkpoints that are kept, -1 for all.
    """

    recipe: Recipe
    epochs: int
    seed: int = 0
    amp: bool = False
    auto_scale_lr: bool = False
    distill: float | None = None
    max_keep: int = -1


@dataclass(frozen=True)
class Stage:
    """A checked training, ready to be written into a folder.

    Args:
        cfg: Config of the dense model.
        dense: The dense checkpoint.
        wanted: What was asked for.
        length: How long it is.
        dataset_meta: Meta information of the training data.
        world_size: Number of processes.
    """

    cfg: Config
    dense: Path
    wanted: Wanted
    length: Length
    dataset_meta: dict | None
    world_size: int


def check(cfg: Config, dense: Path, wanted: Wanted, world_size: int) -> Stage:
    """Refuses what cannot be trained, before anything is pruned.

    Raises:
        ValueError: If so.
    """
    check_trainable(cfg)
    epoch_length, dataset_meta = prepare_data(cfg)
    first = 0
    if wanted.recipe.carry_on:
        meta = load_checkpoint_file(dense).get('meta')
        epoch = meta.get('epoch') if isinstance(meta, dict) else None
        first = epoch if isinstance(epoch, int) else 0
    length = Length(wanted.epochs, epoch_length, first)
    return Stage(cfg, dense, wanted, length, dataset_meta, world_size)


def prepare(
    stage: Stage,
    pruned: Path,
    folder: Path,
    resume: bool,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes start checkpoint and config of a training, on one rank.

    Args:
        stage: From :func:`check`.
        pruned: The pruned checkpoint.
        folder: Where.
        resume: Whether to leave a training that has begun as it is.
        say: Called with lines about what was decided.

    Returns:
        The config.

    Raises:
        ValueError: If a training with other options is to be resumed.
    """
    checkpoint = load_checkpoint_file(pruned)
    sparse = bool(checkpoint['meta']['pruning_plan'].get('sparse'))
    cfg = _config(stage, sparse, folder, say)
    path = folder / Path(cfg.filename).name
    if resume and last_checkpoint(folder) is not None:
        if path.exists() and path.read_text() == cfg.pretty_text:
            return path
        raise ValueError(
            f'--resume: the training in {folder} was started with other '
            'options; give them again, or remove that folder'
        )
    folder.mkdir(parents=True, exist_ok=True)
    # What an older training left must not be taken for this one's.
    for old in (*folder.glob('*.pth'), folder / 'last_checkpoint'):
        old.unlink(missing_ok=True)
    start = start_checkpoint(checkpoint, stage.length, stage.dataset_meta)
    save_checkpoint(start, folder / START)
    write_config(cfg, folder)
    if stage.wanted.recipe.carry_on:
        dense = load_checkpoint_file(stage.dense)
        state, reason = carried_state(dense, stage.cfg, checkpoint)
        if reason:
            say(f'the optimizer starts afresh: {reason}')
        else:
            say(f'the optimizer carries on the state of {len(state)} weights')
        # Read back: only there the paths lead somewhere.
        add_optimizer(start, Config.fromfile(path), state, stage.length)
        save_checkpoint(start, folder / START)
    return path


def _config(
    stage: Stage, sparse: bool, folder: Path, say: Callable[[str], None]
) -> Config:
    wanted = stage.wanted
    cfg = training_config(stage.cfg, wanted.recipe, stage.length, say)
    if wanted.distill is not None:
        distilled(cfg, stage.dense, folder, wanted.distill)
    with_plan(cfg, sparse)
    with_safety(cfg, wanted.seed, say)
    checkpoint = cfg.default_hooks.get('checkpoint')
    if checkpoint is not None:
        checkpoint.max_keep_ckpts = wanted.max_keep
    if wanted.amp:
        with_amp(cfg)
    if wanted.auto_scale_lr:
        factor = scale_lr(cfg, stage.world_size)
        say(f'--auto-scale-lr: learning rate times {factor:g}')
    return cfg
