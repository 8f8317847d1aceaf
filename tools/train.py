"""Trains a model, dense or pruned, from a config.

python tools/train.py CONFIG [--resume]
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402

from mmprune.checkpoints.reading import trust_checkpoints  # noqa: E402
from mmprune.run import launch, training  # noqa: E402
from mmprune.run.cli import (  # noqa: E402
    fail_in_one_sentence,
    load_config,
    stoppable,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(description='Train a model.')
    add = parser.add_argument
    add('config', help='config with training data')
    add('--work-dir', help='where logs and checkpoints go')
    add(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint, the last one if none is named',
    )
    add('--amp', action='store_true', help='mixed precision')
    add(
        '--auto-scale-lr',
        action='store_true',
        help="learning rate by the config's auto_scale_lr",
    )
    add('--trust-checkpoint', action='store_true')
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', help='as in mmengine')
    add('--launcher', choices=launch.LAUNCHERS, default='none')
    add('--local-rank', '--local_rank', type=int, default=0)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the training."""
    args = parse_args(argv)
    say = print if launch.is_first() else (lambda _: None)
    trust_checkpoints(args.trust_checkpoint)
    cfg = load_config(args.config, args.cfg_options)
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(key) is None:
            raise ValueError(
                f'{args.config} has no `{key}`, so there is nothing to '
                'train; add it to the config'
            )
    stem = Path(args.config).stem
    cfg.work_dir = args.work_dir or cfg.get('work_dir', f'work_dirs/{stem}')
    amend(cfg, args, say)
    train(cfg, args.launcher, say)


def train(cfg: Config, launcher: str, say: Callable[[str], None]) -> None:
    """Starts the processes of a launcher and trains; stops in one sentence.

    Raises:
        ValueError: If the launcher does not work here or the training data
            cannot be read.
    """
    folder = Path(cfg.work_dir)
    with stoppable(lambda: _how_to_go_on(folder)):
        cfg.launcher = launch.choose_launcher(launcher, 1, say)
        dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg')
        launch.start(cfg.launcher, dist_cfg, say)
        problem = training.data_problem(cfg, 'train_dataloader')
        if problem:
            raise ValueError(problem)
        training.runner_for(cfg).train()


def amend(cfg, args: argparse.Namespace, say) -> None:
    """Writes the flags into the config, in place.

    Raises:
        ValueError: If one does not fit the config or the machine.
    """
    training.with_safety(cfg, say=say)
    if args.amp:
        if not torch.cuda.is_available():
            raise ValueError(
                '--amp needs a CUDA device, and there is none; leave it out'
            )
        training.with_amp(cfg)
    if args.auto_scale_lr:
        scale = cfg.get('auto_scale_lr') or {}
        if not scale.get('base_batch_size'):
            raise ValueError(
                '--auto-scale-lr needs auto_scale_lr = '
                f'dict(base_batch_size=...) in {args.config}'
            )
        cfg.auto_scale_lr.enable = True
    last = training.last_checkpoint(Path(cfg.work_dir))
    if args.resume == 'auto' and last is None:
        say(f'--resume: no checkpoint in {cfg.work_dir}, starting anew')
    elif args.resume is not None:
        path = Path(last if args.resume == 'auto' else args.resume)
        if not path.is_file():
            raise ValueError(f'--resume: no checkpoint at {path}')
        cfg.load_from, cfg.resume = str(path), True


def _how_to_go_on(folder: Path) -> str:
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
