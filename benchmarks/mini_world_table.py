"""Is pruned VAD as good as a dense one that was trained as long?

On the mini world, at several seeds: trains VAD-nano, prunes it, retrains it
with and without distillation, and trains the dense one for as many epochs
more with the same learning rates (a pruning of nothing). Prints mean and
standard deviation over the seeds, on scenes that were held out.

    python benchmarks/mini_world_table.py --out table_out
    python benchmarks/mini_world_table.py --out table_out --scenes 100 \\
        --epochs 6 --retrain-epochs 3

What is finished is kept, so that it can be started again. Exits with 1 where
the recovered model is more than a tenth behind.
"""

import argparse
import statistics
import sys
from pathlib import Path

from mini_world_runs import (
    columns,
    dense_and_recovered,
    draw,
    keep_settings,
)

CONFIG = 'projects/configs/VAD/VAD_nano_mini_world.py'
# Name, heading, decimals, and whether more is better.
METRICS = (
    ('VAD/plan_L2_avg_1s', 'planning L2, mean up to 1 s (m)', 3, False),
    ('VAD/plan_L2_avg_3s', 'planning L2, mean up to 3 s (m)', 3, False),
    ('VAD/bev_center_ap_car', 'detection, BEV centre AP of cars', 3, True),
    ('VAD/bev_center_ap', 'detection, BEV centre AP, all classes', 3, True),
    ('VAD/map_mAP', 'map, Chamfer mAP', 3, True),
)
# What the claim is about.
CLAIMED = ('VAD/plan_L2_avg_3s', 'VAD/bev_center_ap_car', 'VAD/map_mAP')
TOLERANCE = 0.1
COLUMNS = ('dense', 'dense, longer', 'pruned', 'recovered', 'distilled')


def main() -> int:
    """Runs all, prints the table; returns the exit code."""
    args = _parse()
    out = Path(args.out).resolve()
    # Further seeds may follow.
    keep_settings(out, **dict(vars(args), out='', seeds=''))
    world = draw(out / 'mini_world', args.scenes)
    runs = [
        columns(
            dense_and_recovered(
                out / f'seed_{seed}',
                world,
                CONFIG,
                seed,
                args.epochs,
                args.retrain_epochs,
                args.pruning_ratio,
                (
                    *('--importance', args.importance),
                    *('--round-to', args.round_to, '--latency-runs', 0),
                ),
            )
        )
        for seed in args.seeds
    ]
    print(table(runs))
    missed = behind(runs)
    for line in missed:
        print(line)
    return 1 if missed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--out', default='mini_world_table', help='where everything goes')
    add(
        '--scenes', type=int, default=50, help='of the world, a fifth held out'
    )
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    add('--epochs', type=int, default=2, help='of the dense model')
    add('--retrain-epochs', type=int, default=1)
    add('--pruning-ratio', type=float, default=0.3)
    add('--round-to', type=int, default=8)
    add('--importance', default='kd_grad')
    return parser.parse_args()


def table(runs: list[dict[str, dict[str, float]]]) -> str:
    """Returns the Markdown table of mean and standard deviation.

    Args:
        runs: Per seed the metrics of each column.
    """
    lines = [
        '| | ' + ' | '.join(COLUMNS) + ' |',
        '|---' * (len(COLUMNS) + 1) + '|',
    ]
    for key, heading, digits, _ in METRICS:
        cells = []
        for column in COLUMNS:
            values = [run[column].get(key, 0.0) for run in runs]
            cell = f'{statistics.mean(values):.{digits}f}'
            if len(values) > 1:
                cell += f' ± {statistics.stdev(values):.{digits}f}'
            cells.append(cell)
        lines.append(f'| {heading} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def behind(runs: list[dict[str, dict[str, float]]]) -> list[str]:
    """Returns a line per metric in which the recovered model is too bad.

    It is compared with the dense model that was trained as long, on the mean
    over the seeds.
    """
    lines = []
    for key, heading, digits, more in METRICS:
        if key not in CLAIMED:
            continue
        ours, theirs = (
            statistics.mean(run[column].get(key, 0.0) for run in runs)
            for column in ('recovered', 'dense, longer')
        )
        worst = theirs * (1 - TOLERANCE if more else 1 + TOLERANCE)
        if ours < worst if more else ours > worst:
            lines.append(
                f'{heading}: recovered {ours:.{digits}f}, dense '
                f'{theirs:.{digits}f}'
            )
    return lines


if __name__ == '__main__':
    sys.exit(main())
