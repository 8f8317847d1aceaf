"""The command line of the ViT pruning guide, as a door to the same run.

    python tools/guides/main_imp_fillback.py --arch vit_small --dataset \
        cifar10 --data data/cifar10 --struct refill --vit_structured --rate 0.7

Every flag becomes a setting of projects/configs/vit; docs/prune_vit.md says
which. New runs are better started with tools/train.py.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from mmengine.config import Config  # noqa: E402
from train import train  # noqa: E402

from mmprune.loops.earlier_names import renamed  # noqa: E402
from mmprune.run import flags, launch, options, training  # noqa: E402
from mmprune.run.cli import (  # noqa: E402
    fail_in_one_sentence,
    load_config,
    merge_options,
)
from mmprune.sparsifying import RewindPoint  # noqa: E402

CONFIGS = ROOT / 'projects' / 'configs' / 'vit'
ARCHS = {
    name: f'{name}_patch16_224'
    for name in ('vit_tiny', 'vit_small', 'vit_base')
}
# What the public script calls l1 and l2 are sums over feature maps.
CRITERIA = {
    'magnitude': 'magnitude',
    'remain': 'remain',
    'saliency': 'saliency',
    'l1': 'act_l1',
    'l2': 'act_l2',
}
RSST_FLAGS = ('reg_granularity_prune', 'RST_schedule', 'exponents')
UNIT_FLAGS = ('vit_prune_target', 'mlp_prune_ratio', 'fillback_rate')
LEAST_STD = 0.03


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags; those that were not given are ``None``."""
    parser = flags.make_parser(
        'Iterative pruning of a ViT with the flags of the guide.',
        options.LaunchOptions,
    )
    _add_run_flags(parser.add_argument)
    _add_pruning_flags(parser.add_argument)
    args = parser.parse_args(argv)
    launch.set_local_rank(args.local_rank)
    return args


def _add_run_flags(add) -> None:
    add('--arch', default='vit_small', help='vit_tiny, vit_small, vit_base')
    add('--dataset', default='cifar10', help='cifar10, cifar100 or digits')
    add('--data', help='folder of the images')
    add('--epochs', type=int, default=60, help='of each pruning state')
    add('--batch_size', type=int, default=128, help='images of a step')
    add('--lr', type=float, default=0.01, help='learning rate')
    add('--momentum', type=float, default=0.9, help='of SGD')
    add('--weight_decay', type=float, default=1e-4, help='of SGD')
    add('--warmup', type=int, default=20, help='epochs')
    add('--decreasing_lr', default='91,136', help='epochs, lr x 0.1 at each')
    add('--seed', type=int, default=0, help='of weights and data')
    add('--workers', type=int, default=4, help='processes that read data')
    add('--print_freq', type=int, default=50, help='iterations')
    add('--init', help='first weights: read if there, else written')
    add('--vit_pretrained', action='store_true', help='ImageNet weights')
    add('--pretrained_file', help='where they are; else timm is asked')
    add('--save_dir', help='where checkpoints and logs go')
    add('--exp_name', help='name of the run in its logs and results')
    add('--resume', action='store_true', help='go on in save_dir')
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', help='as in mmengine')


def _add_pruning_flags(add) -> None:
    add('--struct', default='refill', help='refill or rsst')
    add('--vit_structured', action='store_true', help='whole heads, neurons')
    add('--vit_prune_target', help='head, mlp or both')
    add('--criteria', default='magnitude', help=', '.join(CRITERIA))
    add('--rate', type=float, default=0.2, help='final fraction of heads')
    add('--mlp_prune_ratio', type=float, help='final fraction of neurons')
    add('--pruning_times', type=int, default=16, help='states, dense included')
    add('--rate_schedule', default='geometric', help='docs/prune_vit.md')
    add('--sorting_mode', default='global', help='global or layer-wise')
    add('--fillback_rate', type=float, help='fraction that comes back')
    add('--prune_type', default='lt', help='lt, rewind_lt or pt')
    add(
        '--rewind_epoch',
        type=int,
        default=0,
        help='of rewind_lt: epoch of the weights that are restored',
    )
    add('--reg_granularity_prune', type=float, help='final strength of rsst')
    add('--RST_schedule', help='how the strength grows')
    add('--exponents', type=float, help='of exp_custom_exponents')


def check(args: argparse.Namespace) -> None:
    """Refuses flags that would have no effect together.

    Raises:
        ValueError: If there are some.
    """
    if args.dataset not in ('cifar10', 'cifar100', 'digits'):
        raise ValueError(
            f'--dataset takes cifar10, cifar100 or digits, found '
            f'{args.dataset!r}'
        )
    if args.criteria not in CRITERIA:
        raise ValueError(
            f'--criteria takes {", ".join(CRITERIA)}, found {args.criteria!r}'
        )
    if not args.arch.startswith(('vit', 'deit')):
        raise ValueError(
            f'--arch {args.arch} is no vision transformer; this door prunes '
            'heads and neurons, tools/prune_and_retrain.py prunes channels'
        )
    pairs = [
        (RSST_FLAGS, args.struct == 'rsst', '--struct rsst'),
        (UNIT_FLAGS, args.vit_structured, '--vit_structured'),
        (('pretrained_file',), args.vit_pretrained, '--vit_pretrained'),
        (('data',), args.dataset != 'digits', 'a CIFAR --dataset'),
    ]
    for names, allowed, needed in pairs:
        given = [f'--{n}' for n in names if getattr(args, n) is not None]
        if given and not allowed:
            raise ValueError(
                f'{", ".join(given)} has no effect without {needed}; add it '
                'or leave the flag out'
            )
    if args.vit_prune_target == 'head' and args.mlp_prune_ratio is not None:
        raise ValueError(
            '--mlp_prune_ratio has no effect with --vit_prune_target head; '
            'leave one of them out'
        )


def config_from(args: argparse.Namespace) -> Config:
    """Returns the config of the run that the flags describe.

    Raises:
        ValueError: If a file does not fit.
    """
    stem = f'vit_small_{args.dataset}_refill_70p'
    if args.dataset == 'digits':
        stem = 'vit_tiny_digits_imp'
    cfg = load_config(str(CONFIGS / f'{stem}.py'))
    cfg.model = _model(args, cfg)
    cfg.train_cfg = _train_cfg(args)
    cfg.optim_wrapper = dict(
        optimizer=dict(
            type='SGD',
            lr=args.lr,
            momentum=args.momentum,
            weight_decay=args.weight_decay,
        )
    )
    cfg.param_scheduler = _schedulers(args)
    cfg.train_dataloader.batch_size = args.batch_size
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[name].num_workers = args.workers
        if args.data is not None:
            cfg[name].dataset.data_root = args.data
    cfg.default_hooks.logger.interval = args.print_freq
    cfg.randomness = dict(seed=args.seed)
    cfg.work_dir = args.save_dir or f'work_dirs/{args.arch}_{args.dataset}'
    if args.exp_name:
        cfg.experiment_name = args.exp_name
    return cfg


def _model(args: argparse.Namespace, cfg: Config) -> dict:
    kept = ('type', 'img_size', 'patch_size', 'in_chans', 'num_classes')
    model = {k: cfg.model[k] for k in kept if k in cfg.model}
    return dict(
        **model,
        model=ARCHS.get(args.arch, args.arch),
        pretrained=_pretrained(args),
        data_preprocessor=cfg.model.data_preprocessor.to_dict(),
    )


def _pretrained(args: argparse.Namespace) -> str | None:
    """Where ImageNet weights come from; the init file has its own."""
    if args.init and Path(args.init).is_file():
        weights = RewindPoint.load(args.init).weights
        first = weights.get('blocks.0.attn.qkv.weight')
        std = 0.0 if first is None else first.float().std().item()
        if launch.is_first():
            print(f'{args.init}: std of the first qkv weight {std:.3f}')
        if args.vit_pretrained and std < LEAST_STD:
            raise ValueError(
                f'--vit_pretrained was given, but {args.init} looks '
                f'untrained: its first qkv weight has a standard deviation '
                f'of {std:.3f}, below {LEAST_STD}'
            )
        return None
    if not args.vit_pretrained:
        return None
    return args.pretrained_file or 'timm'


def _train_cfg(args: argparse.Namespace) -> dict:
    same = (
        'epochs',
        'pruning_times',
        'struct',
        'rate',
        'rate_schedule',
        'vit_structured',
        'sorting_mode',
        'prune_type',
        'rewind_epoch',
        'init',
        *RSST_FLAGS,
        *UNIT_FLAGS,
    )
    given = {name: getattr(args, name) for name in same}
    given['criteria'] = CRITERIA[args.criteria]
    options = {k: v for k, v in given.items() if v is not None}
    return dict(type='mmprune.IterativePruningLoop', **renamed(options)[0])


def _schedulers(args: argparse.Namespace) -> list[dict]:
    try:
        milestones = [int(e) for e in args.decreasing_lr.split(',') if e]
    except ValueError as error:
        raise ValueError(
            '--decreasing_lr takes epochs with commas, as 91,136, found '
            f'{args.decreasing_lr!r}'
        ) from error
    schedulers = [
        dict(
            type='MultiStepLR', milestones=milestones, gamma=0.1, by_epoch=True
        )
    ]
    warmup = min(args.warmup, args.epochs)
    if warmup:
        schedulers.insert(
            0,
            dict(
                type='LinearLR',
                start_factor=0.01,
                begin=0,
                end=warmup,
                by_epoch=True,
                convert_to_iter_based=True,
            ),
        )
    return schedulers


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the training."""
    args = parse_args(argv)
    check(args)
    cfg = config_from(args)
    merge_options(cfg, args.cfg_options)
    log = print if launch.is_first() else (lambda _: None)
    training.with_safety(cfg, log=log)
    if args.resume:
        last = training.last_checkpoint(Path(cfg.work_dir))
        if last is None:
            log(f'--resume: no checkpoint in {cfg.work_dir}, starting anew')
        else:
            cfg.load_from, cfg.resume = str(last), True
    train(cfg, args.launcher, log)


if __name__ == '__main__':
    main()
