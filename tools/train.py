"""Trains a model, dense or pruned, from a config.

python tools/train.py CONFIG [--resume]
"""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmprune.run import options  # noqa: E402
from mmprune.run.cli import (  # noqa: E402
    fail_in_one_sentence,
    load_config,
    stoppable,
)
from mmprune.run.flags import argument, option, read  # noqa: E402

if TYPE_CHECKING:
    from mmengine.config import Config


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What a training reads and writes."""

    config: str = argument('config with training data')
    work_dir: str | None = options.work_dir()
    resume: str | None = option(
        None,
        'go on from a checkpoint, the last one if none is named',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        shown='off',
    )
    load_from: str | None = option(
        None,
        'start from the weights of a checkpoint',
        metavar='CHECKPOINT',
        shown="the config's load_from, else none",
    )
    force: bool = option(False, 'overwrite another run in --work-dir')
    amp: bool = options.amp()
    auto_scale_lr: bool = options.auto_scale_lr()
    trust_checkpoint: bool = options.trust_checkpoint()
    cfg_options: tuple[str, ...] = options.config_options()


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the training."""
    asked, launching = read(
        'Train a model.', (TrainOptions, options.LaunchOptions), argv
    )
    # PyTorch, which --help does without.
    from mmprune.checkpoints.reading import trust_checkpoints
    from mmprune.run import launch

    launch.set_local_rank(launching.local_rank)
    log = print if launch.is_first() else (lambda _: None)
    trust_checkpoints(asked.trust_checkpoint)
    cfg = load_config(asked.config, asked.cfg_options)
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(key) is None:
            raise ValueError(
                f'{asked.config} has no `{key}`, so there is nothing to '
                'train; add it to the config'
            )
    stem = Path(asked.config).stem
    cfg.work_dir = asked.work_dir or cfg.get('work_dir', f'work_dirs/{stem}')
    resume = asked.resume is not None or bool(cfg.get('resume'))
    check_work_dir(cfg, '--work-dir', resume, asked.force)
    amend(cfg, asked, log)
    check_start(cfg, log)
    train(cfg, launching.launcher, log)


def check_work_dir(
    cfg: 'Config', flag: str, resume: bool, force: bool
) -> None:
    """Refuses to train where another run is.

    Args:
        cfg: The config.
        flag: What names the folder.
        resume: Whether that run is gone on with.
        force: Whether it is overwritten.

    Raises:
        ValueError: If there is one, and neither was asked for, or both.
    """
    from mmprune.run.folder import check_output

    if resume and force:
        raise ValueError(
            '--resume keeps what --force removes; give one of them'
        )
    folder = Path(cfg.work_dir)
    check_output(folder, flag, resume or force, 'training')
    first = Path(cfg.get('load_from') or 'none').absolute()
    if force and first.parent == folder.absolute():
        raise ValueError(
            f'--force would remove {first}, which load_from names; choose '
            f'another {flag}'
        )


def train(cfg: 'Config', launcher: str, log: Callable[[str], None]) -> None:
    """Starts the processes of a launcher and trains; stops in one sentence.

    What another run left in the folder goes, unless this one goes on with it.

    Raises:
        ValueError: If the launcher does not work here or the training data
            cannot be read.
    """
    from mmprune.run import launch, training
    from mmprune.run.folder import begun, forget_training

    folder = Path(cfg.work_dir)
    with (
        stoppable(lambda: _how_to_go_on(folder)),
        begun(folder, Path(cfg.filename).name),
    ):
        cfg.launcher = launch.choose_launcher(launcher, 1, log)
        dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg')
        team = launch.start(cfg.launcher, dist_cfg, log)
        problem = training.data_problem(cfg, 'train_dataloader')
        if problem:
            raise ValueError(problem)
        runner = training.runner_for(cfg)
        if not cfg.get('resume'):
            team.first(lambda: forget_training(folder))
        runner.train()


def amend(
    cfg: 'Config', asked: TrainOptions, log: Callable[[str], None]
) -> None:
    """Writes the options into the config, in place.

    Raises:
        ValueError: If one does not fit the config or the machine.
    """
    import torch

    from mmprune.run import training

    training.with_safety(cfg, log=log)
    cfg.load_from = asked.load_from or cfg.get('load_from')
    if asked.amp:
        if not torch.cuda.is_available():
            raise ValueError(
                '--amp needs a CUDA device, and there is none; leave it out'
            )
        training.with_amp(cfg)
    if asked.auto_scale_lr:
        scale = cfg.get('auto_scale_lr') or {}
        if not scale.get('base_batch_size'):
            raise ValueError(
                '--auto-scale-lr needs auto_scale_lr = '
                f'dict(base_batch_size=...) in {asked.config}'
            )
        cfg.auto_scale_lr.enable = True
    last = training.last_checkpoint(Path(cfg.work_dir))
    if asked.resume == 'auto' and last is None:
        log(f'--resume: no checkpoint in {cfg.work_dir}, starting anew')
    elif asked.resume is not None:
        path = Path(last if asked.resume == 'auto' else asked.resume)
        if not path.is_file():
            raise ValueError(f'--resume: no checkpoint at {path}')
        cfg.load_from, cfg.resume = str(path), True


def check_start(cfg: 'Config', log: Callable[[str], None]) -> None:
    """Looks at the weights that a training starts from.

    Raises:
        ValueError: If it needs some and has none, or they cannot be read.
    """
    from mmprune.checkpoints.normalization import compare_normalization
    from mmprune.checkpoints.reading import load_checkpoint_file
    from mmprune.hooks import check_weights

    check_weights(cfg)
    if cfg.load_from and '://' not in cfg.load_from:
        meta = load_checkpoint_file(cfg.load_from).get('meta')
        compare_normalization(cfg, meta, cfg.load_from, log)


def _how_to_go_on(folder: Path) -> str:
    from mmprune.run import training

    last = training.last_checkpoint(folder)
    kept = f'the last good checkpoint is {last}' if last else 'no checkpoint'
    words = [w for w in sys.argv if not w.startswith('--resume=')]
    named = [w.partition('=')[2] for w in sys.argv if w not in words]
    if '--resume' in words:
        at = words.index('--resume')
        named = [w for w in words[at + 1 : at + 2] if not w.startswith('-')]
        del words[at : at + 1 + len(named)]
    # A checkpoint that was named is older than the last one, if there is one.
    words += ['--resume', *([] if last else named)]
    return f'{kept}; go on with: python {shlex.join(words)}'


if __name__ == '__main__':
    main()
