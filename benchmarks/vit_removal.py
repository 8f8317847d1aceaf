"""How much faster a ViT is when its heads and neurons are really gone.

    python benchmarks/vit_removal.py --rounds 11

ViT-Small at 32 x 32 (or --img-size 224 --patch-size 16), dense, masked and
pruned, batch 1 and 32, taking turns. Exits with 1 if masked and pruned differ
or if the pruned one is below the goal of 2.5x.
"""

import argparse
import copy
import statistics
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from mmprune.adapters import vit_groups  # noqa: E402
from mmprune.cost import (  # noqa: E402
    count_macs,
    count_params,
    time_in_turns,
)
from mmprune.importance import Magnitude  # noqa: E402
from mmprune.masks import mask_plan  # noqa: E402
from mmprune.pruners import StructuredPruner  # noqa: E402
from mmprune.registry import MODELS  # noqa: E402
from mmprune.surgery import apply_plan  # noqa: E402

GOAL, TOLERANCE = 2.5, 1e-5


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(description='Time a pruned ViT.')
    add = parser.add_argument
    add('--model', default='vit_small_patch16_224')
    add('--depth', type=int, default=12)
    add('--img-size', type=int, default=32)
    add('--patch-size', type=int, default=4)
    add('--rate', type=float, default=0.7)
    add('--batch-sizes', type=int, nargs='+', default=[1, 32])
    add('--rounds', type=int, default=11, help='timed forwards of each model')
    add('--sorting-mode', default='global', choices=('global', 'layer-wise'))
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--checkpoint', help='of a run; else fresh weights of a fixed seed')
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> nn.Module:
    """Returns the dense model."""
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='mmprune.TimmClassifier',
            model=args.model,
            depth=args.depth,
            img_size=args.img_size,
            patch_size=args.patch_size,
            num_classes=10,
        )
    )
    if args.checkpoint:
        found = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(found.get('state_dict', found))
    return model.to(args.device).eval()


def without_units(
    model: nn.Module, args: argparse.Namespace
) -> tuple[nn.Module, nn.Module]:
    """Returns a masked and a pruned copy."""
    pruner = StructuredPruner(
        args.rate,
        Magnitude(reduce='sum', sides='producers'),
        scope='layer' if args.sorting_mode == 'layer-wise' else 'global',
        normalize=None,
    )
    plan = pruner(model, list(vit_groups(model)))
    masked, pruned = copy.deepcopy(model), copy.deepcopy(model)
    mask_plan(masked, plan)
    apply_plan(pruned, plan)
    return masked, pruned


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    args = parse_args(argv)
    dense = build(args)
    masked, pruned = without_units(dense, args)
    models = dict(dense=dense, masked=masked, pruned=pruned)
    side = args.img_size
    images = torch.randn(max(args.batch_sizes), 3, side, side).to(args.device)
    with torch.no_grad():
        expected, found = masked(images), pruned(images)
    difference = ((expected - found).abs().max() / expected.abs().max()).item()
    print(
        f'{args.model} at {side} x {side}, {args.rate:.0%} of heads and '
        f'neurons, {args.sorting_mode}, {args.device}, '
        f'{torch.get_num_threads()} threads, PyTorch {torch.__version__}; '
        f'masked and pruned differ by {difference:.1e}\n'
    )
    print('| batch | model | params (M) | MACs (G) | median (ms) | quartiles '
          '(ms) | dense / this |')  # fmt: skip
    print('|---|---|---|---|---|---|---|')
    ratios = []
    for size in args.batch_sizes:
        forwards = {
            name: partial(model, images[:size])
            for name, model in models.items()
        }
        with torch.no_grad():
            times = time_in_turns(forwards, runs=args.rounds, warmup=2)
        base = statistics.median(times['dense'])
        for name, model in models.items():
            low, middle, high = statistics.quantiles(times[name], n=4)
            macs = count_macs(model, lambda m, n=size: m(images[:n]))['']
            print(
                f'| {size} | {name} | {count_params(model) / 1e6:.2f} | '
                f'{macs / 1e9:.2f} | {middle:.2f} | {low:.2f} - {high:.2f} | '
                f'{base / middle:.2f}x |'
            )
        ratios.append(base / statistics.median(times['pruned']))
    if not difference <= TOLERANCE:
        sys.exit('masked and pruned differ')
    if min(ratios) < GOAL:
        sys.exit(f'{min(ratios):.2f}x is below the goal of {GOAL}x')


if __name__ == '__main__':
    main()
