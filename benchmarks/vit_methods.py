"""Which way of choosing costs a trained ViT least: Refill, RSST, one shot, or
chance?

    MMPRUNE_CIFAR10=../shared/data/cifar10_jpeg \\
        python benchmarks/vit_methods.py --out vit_methods_out

Each seed trains a small ViT; every method begins with its weights, comes back
to them in each round, and trains as many epochs in the last round as the
others. Prints the accuracy of each method, mean and standard deviation over
the seeds. What is finished is kept, so that it can be started again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmprune.atomic_file import write_whole  # noqa: E402

CONFIGS = ROOT / 'projects' / 'configs' / 'vit'
REFILL = 'vit_tiny_cifar10_refill_70p.py'
RSST = 'vit_tiny_cifar10_rsst_70p.py'
CHANCE = dict(_delete_=True, type='mmprune.Random')
# Name -> config, rounds where they are not those of --rounds, and whether
# units go by chance. The first round prunes nothing.
METHODS = {
    'dense': (REFILL, 1, False),
    'Refill': (REFILL, None, False),
    'RSST': (RSST, None, False),
    'one shot': (REFILL, 2, False),
    'one shot, by chance': (REFILL, 2, True),
}
STEPS = 79  # of an epoch: the 5,000 pictures in batches of 64
# Least sum of rate times progress of a round, by its first rate and its steps:
# that of a cosine without a warm-up, 1/4 - 1/pi^2.
PULLED = 0.149


def main(argv: list[str] | None = None) -> None:
    """Runs all and prints the table."""
    args = parse_args(argv)
    found = {name: [] for name in METHODS}
    for seed in args.seeds:
        start = args.out / f'seed_{seed}' / 'start'
        train(start, dense_config(args, seed))
        for name in args.methods or METHODS:
            folder = args.out / f'seed_{seed}' / name.replace(' ', '_')
            rounds = train(
                folder, method_config(args, name, seed, start / 'latest.pth')
            )
            found[name].append(rounds[-1]['metrics']['Acc@1'])
    print('| method | test accuracy (%) | seeds |\n|---|---|---|')
    for name, values in found.items():
        if not values:
            continue
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        shown = ', '.join(f'{value:.1f}' for value in values)
        print(
            f'| {name} | {statistics.mean(values):.1f} ± {spread:.1f} | '
            f'{shown} |'
        )


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--out', type=Path, default=Path('vit_methods_out'))
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    add('--methods', nargs='+', choices=METHODS, help='default: all')
    add('--start-epochs', type=int, default=60, help='of the first training')
    add('--rounds', type=int, default=5, help='of Refill and RSST')
    add('--epochs', type=int, default=3, help='of each round')
    add('--heads', type=float, default=0.7, help='sparsity')
    add('--neurons', type=float, default=0.9, help='sparsity')
    add('--lr', type=float, default=3e-4, help='of each round')
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    return args


def train(folder: Path, config: dict) -> list[dict]:
    """Returns the rounds of a run in a folder, which is made or finished."""
    path = folder / 'config.py'
    lines = [f'{key} = {value!r}' for key, value in config.items()]
    text = '\n'.join(lines) + '\n'
    if path.is_file() and path.read_text() != text:
        sys.exit(
            f'{folder} was made with other settings; choose another --out'
        )
    write_whole(path, text.encode())
    if not (folder / 'report.json').is_file():
        subprocess.run(
            [sys.executable, 'tools/train.py', str(path), '--work-dir']
            + [str(folder), '--resume'],
            cwd=ROOT,
            check=True,
        )
    return json.loads((folder / 'rounds.json').read_text())['rounds']


def dense_config(args: argparse.Namespace, seed: int) -> dict:
    """The training of the weights that all begin with."""
    epochs = args.start_epochs
    return dict(
        _base_=[str(CONFIGS / REFILL)],
        train_cfg=dict(rounds=1, epochs=epochs, val_interval=epochs),
        param_scheduler=schedule(epochs, 2),
        randomness=dict(seed=seed),
    )


def method_config(
    args: argparse.Namespace, name: str, seed: int, start: Path
) -> dict:
    """A method from the first weights on."""
    base, rounds, by_chance = METHODS[name]
    pruner = dict(sparsity=dict(head=args.heads, neuron=args.neurons))
    if by_chance:
        pruner['importance'] = dict(CHANCE, seed=seed)
    loop = dict(
        rounds=rounds or args.rounds,
        epochs=args.epochs,
        val_interval=args.epochs,
        init=str(start),
        pruner=pruner,
    )
    if base == RSST:
        # Leaves at most exp(-10) of the norm.
        pulled = PULLED * args.lr * args.epochs * STEPS
        loop['decay'] = dict(strength=10 / pulled)
    return dict(
        _base_=[str(CONFIGS / base)],
        train_cfg=loop,
        optim_wrapper=dict(optimizer=dict(lr=args.lr)),
        param_scheduler=schedule(args.epochs, 0.2),
        randomness=dict(seed=seed),
    )


def schedule(epochs: int, warm: float) -> list[dict]:
    """A warm-up, and a cosine to zero."""
    steps = max(1, round(warm * STEPS))
    end = epochs * STEPS
    return [
        dict(type='LinearLR', start_factor=0.1, end=steps, by_epoch=False),
        dict(
            type='CosineAnnealingLR',
            begin=steps,
            end=end,
            T_max=end - steps,
            by_epoch=False,
        ),
    ]


if __name__ == '__main__':
    main()
