"""The command line of the ViT pruning guide, as a door to the same run.

    python tools/guides/main_imp_fillback.py --arch vit_small --dataset \
        cifar10 --data data/cifar10 --struct refill --vit_structured --rate 0.7

Every flag becomes a setting of projects/configs/vit; docs/prune_vit.md says
which. New runs are better started with tools/train.py.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from train import check_work_dir, train  # noqa: E402

from mmprune.run import flags, options  # noqa: E402
from mmprune.run.cli import (  # noqa: E402
    fail_in_one_sentence,
    load_config,
    merge_options,
)

if TYPE_CHECKING:
    from mmengine.config import Config

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

flag = partial(flags.option, flag='_')
share = partial(flag, type=float, least=0)
number = partial(flag, type=float)


@dataclass(frozen=True, kw_only=True)
class GuideOptions:
    """The flags of the guide; those without a default may be left out."""

    arch: str = flag('vit_small', 'vit_tiny, vit_small, vit_base')
    dataset: str = flag(
        'cifar10', 'images', choices=('cifar10', 'cifar100', 'digits')
    )
    data: str | None = flag(None, 'folder of the images')
    epochs: int = flag(60, 'of each pruning state', least=1)
    batch_size: int = flag(128, 'images of a step', least=1)
    lr: float = flag(0.01, 'learning rate', least=0)
    momentum: float = flag(0.9, 'of SGD', least=0)
    weight_decay: float = flag(1e-4, 'of SGD', least=0)
    warmup: int = flag(20, 'epochs', least=0)
    decreasing_lr: str = flag('91,136', 'epochs, lr x 0.1 at each')
    seed: int = options.seed('of weights and data')
    workers: int = flag(4, 'processes that read data', least=0)
    print_freq: int = flag(50, 'iterations', least=1)
    init: str | None = flag(None, 'first weights: read if there, else written')
    vit_pretrained: bool = flag(False, 'ImageNet weights')
    pretrained_file: str | None = flag(
        None, 'where they are', shown='timm is asked'
    )
    save_dir: str | None = flag(None, 'where checkpoints and logs go')
    exp_name: str | None = flag(
        None, 'name of the run in its logs and results'
    )
    resume: bool = flag(False, 'go on in save_dir')
    force: bool = flag(False, 'overwrite another run in save_dir')
    cfg_options: tuple[str, ...] = options.config_options()
    struct: str = flag('refill', 'method', choices=('refill', 'rsst'))
    vit_structured: bool = flag(False, 'whole heads, neurons')
    vit_prune_target: str | None = flag(
        None, 'what is pruned', choices=('head', 'mlp', 'both')
    )
    criteria: str = flag('magnitude', 'score', choices=tuple(CRITERIA))
    rate: float = share(0.2, 'final fraction of heads', below=1)
    mlp_prune_ratio: float | None = share(
        None, 'final fraction of neurons', below=1
    )
    pruning_times: int = flag(16, 'states, dense included', least=1)
    rate_schedule: str = flag('geometric', 'docs/prune_vit.md')
    sorting_mode: str = flag(
        'global', 'where they compete', choices=('global', 'layer-wise')
    )
    fillback_rate: float | None = share(
        None, 'fraction that comes back', most=1
    )
    prune_type: str = flag('lt', 'lt, rewind_lt or pt')
    rewind_epoch: int = flag(
        0, 'of rewind_lt: epoch of the weights that are restored', least=0
    )
    reg_granularity_prune: float | None = number(
        None, 'final strength of rsst'
    )
    RST_schedule: str | None = flag(None, 'how the strength grows')
    exponents: float | None = number(None, 'of exp_custom_exponents')

    def __post_init__(self) -> None:
        flags.check_values(self)
        check(self)


def check(args: GuideOptions) -> None:
    """Refuses flags that would have no effect together.

    Raises:
        ValueError: If there are some.
    """
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
    if args.init and Path(args.init).is_dir():
        raise ValueError(
            f'--init {args.init} is a folder; name the file of the weights'
        )
    if args.vit_prune_target == 'head' and args.mlp_prune_ratio is not None:
        raise ValueError(
            '--mlp_prune_ratio has no effect with --vit_prune_target head; '
            'leave one of them out'
        )


def config_from(args: GuideOptions) -> 'Config':
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


def _model(args: GuideOptions, cfg: 'Config') -> dict:
    kept = ('type', 'img_size', 'patch_size', 'in_chans', 'num_classes')
    model = {k: cfg.model[k] for k in kept if k in cfg.model}
    return dict(
        **model,
        model=ARCHS.get(args.arch, args.arch),
        pretrained=_pretrained(args),
        data_preprocessor=cfg.model.data_preprocessor.to_dict(),
    )


def _pretrained(args: GuideOptions) -> str | None:
    """Where ImageNet weights come from; the init file has its own."""
    from mmprune.run.port import is_first
    from mmprune.sparsifying import RewindPoint

    if args.init and Path(args.init).is_file():
        weights = RewindPoint.load(args.init).weights
        first = weights.get('blocks.0.attn.qkv.weight')
        std = 0.0 if first is None else first.float().std().item()
        if is_first():
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


def _train_cfg(args: GuideOptions) -> dict:
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
    from mmprune.loops.earlier_names import renamed

    given = {name: getattr(args, name) for name in same}
    given['criteria'] = CRITERIA[args.criteria]
    options = {k: v for k, v in given.items() if v is not None}
    return dict(type='mmprune.IterativePruningLoop', **renamed(options)[0])


def _schedulers(args: GuideOptions) -> list[dict]:
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
    args, launching = flags.read(
        'Iterative pruning of a ViT with the flags of the guide.',
        (GuideOptions, options.LaunchOptions),
        argv,
    )
    # PyTorch, which --help does without.
    from mmprune.run import launch, training

    launch.set_local_rank(launching.local_rank)
    cfg = config_from(args)
    merge_options(cfg, args.cfg_options)
    check_work_dir(cfg, '--save_dir', args.resume, args.force)
    log = print if launch.is_first() else (lambda _: None)
    training.with_safety(cfg, log=log)
    if args.resume:
        last = training.last_checkpoint(Path(cfg.work_dir))
        if last is None:
            log(f'--resume: no checkpoint in {cfg.work_dir}, starting anew')
        else:
            cfg.load_from, cfg.resume = str(last), True
    train(cfg, launching.launcher, log)


if __name__ == '__main__':
    main()
