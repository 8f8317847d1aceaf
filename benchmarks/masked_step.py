"""What masks cost: a training step with masks beside a dense one.

    python benchmarks/masked_step.py --rounds 100

ViT-Small at 32 x 32, batch 1, SGD with momentum. Beside it the masks of
torch.nn.utils.prune, which multiply weights in every forward. The models take
turns. Exits with 1 if the masks of mmprune cost more than 2%.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from mmengine.optim import AmpOptimWrapper, OptimWrapper  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

from mmprune.adapters import vit_groups  # noqa: E402
from mmprune.cost import count_macs, time_in_turns  # noqa: E402
from mmprune.importance import Magnitude  # noqa: E402
from mmprune.masks import clear  # noqa: E402
from mmprune.pruners import StructuredPruner  # noqa: E402
from mmprune.registry import MODELS  # noqa: E402
from mmprune.sparsifying import Growth, Masking  # noqa: E402

LIMIT = 0.02


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(description='Time masked training.')
    add = parser.add_argument
    add('--model', default='vit_small_patch16_224')
    add('--depth', type=int, default=12)
    add('--rate', type=float, default=0.7)
    add('--batch-size', type=int, default=1)
    add('--rounds', type=int, default=100, help='timed steps of each model')
    add('--amp', action='store_true', help='bfloat16, needs CUDA')
    add('--peak-tflops', type=float, help='of the device: adds its use (MFU)')
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> nn.Module:
    """Returns the model, the same weights each time."""
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='mmprune.TimmClassifier',
            model=args.model,
            depth=args.depth,
            img_size=32,
            patch_size=4,
            num_classes=10,
        )
    )
    return model.to(args.device).train()


def zeroed(model: nn.Module, rate: float) -> Growth:
    """Zeroes heads and neurons as the loop does; returns what is pruned."""
    criterion = Magnitude(reduce='sum', sides='producers')
    pruner = StructuredPruner(rate, criterion, normalize=None)
    growth = Growth(pruner, model, list(vit_groups(model)))
    growth.advance(rate, growth.calibrate(rate))
    clear(growth.regions(model, growth.pruned))
    return growth


def mask_by_torch(model: nn.Module, rate: float) -> None:
    """Puts torch's masks over the matrices that have lost units."""
    zeroed(model, rate)
    for module in model.modules():
        if isinstance(module, nn.Linear) and (module.weight == 0).any():
            mask = (module.weight != 0).float()
            prune.custom_from_mask(module, 'weight', mask)


def stepper(
    model: nn.Module, growth: Growth | None, args: argparse.Namespace
) -> Callable[[], None]:
    """Returns a function that does one training step, masked by growth."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    masking = Masking(model, [optimizer])
    if growth is not None:
        masking.hold(growth.readers, producers_zero=True)
    wrapper = OptimWrapper(optimizer)
    if args.amp:
        wrapper = AmpOptimWrapper(dtype='bfloat16', optimizer=optimizer)
    images = torch.randn(args.batch_size, 3, 32, 32, device=args.device)
    labels = torch.zeros(args.batch_size, dtype=torch.long).to(args.device)

    def step() -> None:
        model.train_step(dict(inputs=images, data_samples=labels), wrapper)
        if growth is not None:
            masking.apply()

    return step


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    args = parse_args(argv)
    dense, ours, theirs = (build(args) for _ in range(3))
    growth = zeroed(ours, args.rate)
    mask_by_torch(theirs, args.rate)
    steps = {
        'dense': stepper(dense, None, args),
        'mmprune': stepper(ours, growth, args),
        'torch.nn.utils.prune': stepper(theirs, None, args),
    }
    times = time_in_turns(steps, runs=args.rounds, warmup=3)
    threads = torch.get_num_threads()
    print(
        f'{args.model} at 32 x 32, batch {args.batch_size}, {args.rate:.0%} '
        f'of heads and neurons masked, {args.rounds} steps, {args.device}, '
        f'{threads} threads, PyTorch {torch.__version__}\n'
    )
    print(
        '| training step | median (ms) | quartiles (ms) | of dense | '
        'images/s |'
    )
    print('|---|---|---|---|---|')
    base = statistics.median(times['dense'])
    for name, spent in times.items():
        low, middle, high = statistics.quantiles(spent, n=4)
        print(
            f'| {name} | {middle:.2f} | {low:.2f} - {high:.2f} | '
            f'{middle / base:.3f}x | {1000 * args.batch_size / middle:.0f} |'
        )
    if args.peak_tflops:
        image = torch.randn(1, 3, 32, 32, device=args.device)
        macs = count_macs(dense, lambda model: model(image))['']
        # forward and twice as much backward, two operations per MAC
        flops = 6 * macs * args.batch_size / (base / 1000)
        print(f'\nMFU of dense: {flops / args.peak_tflops / 1e12:.1%}')
    # Of the same round, so that a slow moment hits both.
    ratio = statistics.median(
        ours / theirs
        for ours, theirs in zip(times['mmprune'], times['dense'], strict=True)
    )
    print(f'\nmasks cost {ratio - 1:+.1%} (median of the rounds)')
    if ratio > 1 + LIMIT:
        sys.exit(f'masks cost more than {LIMIT:.0%}')


if __name__ == '__main__':
    main()
