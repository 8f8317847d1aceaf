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
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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
    world = _world(out / 'mini_world', args)
    runs = [
        _seed(out / f'seed_{seed}', world, seed, args) for seed in args.seeds
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
    return parser.parse_args()


def _run(world: Path, *words: object) -> None:
    words = [str(word) for word in words]
    print('$ python', *words, flush=True)
    environment = {**os.environ, 'MMPRUNE_MINI_WORLD': f'{world}/'}
    subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, check=True
    )


def _world(world: Path, args: argparse.Namespace) -> Path:
    if not world.is_dir():
        _run(
            *(world, 'tools/make_mini_world.py', world),
            *('--scenes', args.scenes),
        )
    if not (world / 'vad_nuscenes_infos_temporal_val.pkl').is_file():
        _run(
            *(world, 'tools/create_data.py', 'nuscenes'),
            *('--root-path', world),
        )
    return world


def _seed(
    folder: Path, world: Path, seed: int, args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Returns the metrics of each column."""
    dense = folder / 'dense'
    seeded = f'randomness.seed={seed}'
    if not (dense / f'epoch_{args.epochs}.pth').is_file():
        _run(
            *(world, 'tools/train.py', CONFIG, '--work-dir', dense),
            *('--resume', '--cfg-options', seeded),
            f'train_cfg.max_epochs={args.epochs}',
            # Evaluated with the others.
            f'train_cfg.val_interval={args.epochs + 1}',
            f'param_scheduler.1.T_max={args.epochs}',
        )
    reports = {}
    for name, words in (
        ('longer', ('--pruning-ratio', 0)),
        ('recovered', ('--pruning-ratio', args.pruning_ratio)),
        ('distilled', ('--pruning-ratio', args.pruning_ratio, '--distill')),
    ):
        report = folder / name / 'report.json'
        if not report.is_file():
            _run(
                *(world, 'tools/prune_and_retrain.py', CONFIG),
                *(dense / 'latest.pth', *words, '--mode', 'structured'),
                *('--round-to', args.round_to, '--seed', seed),
                *('--fine-tune', '--retrain', '--latency-runs', 0),
                *('--fine-tune-epochs', args.retrain_epochs),
                *('--output-dir', folder / name, '--resume'),
                *('--cfg-options', seeded),
            )
        reports[name] = json.loads(report.read_text())['metrics']
    return {
        'dense': reports['recovered']['dense'],
        'dense, longer': reports['longer']['recovered'],
        'pruned': reports['recovered']['structured'],
        'recovered': reports['recovered']['recovered'],
        'distilled': reports['distilled']['recovered'],
    }


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
