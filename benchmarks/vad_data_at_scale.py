"""What the data of a training cost at the size of nuScenes.

Grows the info files of a mini world to the 28,130 and 6,019 keyframes of
nuScenes, starts a training of VAD-nano on them, and stops it after the first
iteration. The world itself, a few hundred keyframes, is measured beside it:
the difference is what the number of keyframes costs.

    python tools/make_mini_world.py data/mini_world
    python tools/create_data.py nuscenes --root-path data/mini_world \\
        --version v1.0-mini
    python benchmarks/vad_data_at_scale.py data/mini_world

Exits with 1 if the first iteration takes longer than ``--seconds``, or if
the keyframes take more memory than ``--megabytes``.
"""

import argparse
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CONFIG = ROOT / 'projects' / 'configs' / 'VAD' / 'VAD_nano_mini_world.py'
SPLITS = dict(train=28130, val=6019)
NAME = 'vad_nuscenes_infos_temporal_{}.pkl'
# The child finds here when it was started and where its answer goes.
STARTED, ANSWER = 'VAD_DATA_AT_SCALE_STARTED', 'VAD_DATA_AT_SCALE_ANSWER'
LINKED = ('samples', 'maps')


def grow(source: Path, target: Path, count: int, original: bool) -> None:
    """Writes an info file with so many records.

    Args:
        source: An info file; its records are repeated under new tokens.
        target: Where.
        count: How many.
        original: Whether it is to look like a file of VAD's own converter:
            no map lines, protocol 2.
    """
    content = pickle.loads(source.read_bytes())
    records, turn = [], 0
    while len(records) < count:
        # As converted: lists of the tables are shared within one scene.
        for info in pickle.loads(pickle.dumps(content['infos'])):
            for key in ('token', 'prev', 'next', 'scene_token'):
                info[key] = info[key] and f'{turn:04x}{info[key][4:]}'
            info['timestamp'] += turn * 10**10
            if original:
                del info['gt_map_lines']
            records.append(info)
        turn += 1
    content['infos'] = records[:count]
    if original:
        content['metadata'].pop('map_region')
    with target.open('wb') as file:
        pickle.dump(content, file, protocol=2 if original else 4)


def make_folder(
    world: Path, folder: Path, counts: dict[str, int], original: bool
) -> None:
    """Makes a data set that shares its pictures with the world."""
    for name in LINKED:
        (folder / name).symlink_to(world.resolve() / name)
    for split, count in counts.items():
        name = NAME.format(split)
        grow(world / name, folder / name, count, original)


def first_iteration(folder: Path, workers: int) -> dict[str, float]:
    """Returns what it took a training to get through one iteration."""
    with tempfile.TemporaryDirectory() as out:
        answer = Path(out) / 'answer.json'
        command = [sys.executable, __file__, str(folder), '--child', out]
        env = os.environ | {
            'MMPRUNE_MINI_WORLD': f'{folder}/',
            STARTED: str(time.time()),
            ANSWER: str(answer),
        }
        done = subprocess.run(
            [*command, '--workers', str(workers)],
            env=env,
            capture_output=True,
            text=True,
        )
        if not answer.exists():
            raise ValueError(
                f'the training ended with {done.returncode} before its '
                f'first iteration: {done.stderr[-2000:]}'
            )
        return json.loads(answer.read_text())


def train_once(out: str, workers: int) -> None:
    """Trains in this process until the first iteration is through."""
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    from tools import train

    @HOOKS.register_module()
    class StopAfterFirst(Hook):
        def after_train_iter(self, runner, batch_idx, **kwargs):
            usage = resource.getrusage(resource.RUSAGE_SELF)
            found = dict(
                seconds=time.time() - float(os.environ[STARTED]),
                cpu_seconds=usage.ru_utime + usage.ru_stime,
                peak_mb=usage.ru_maxrss / 1024,
                workers_mb=sum(map(own_megabytes, children())),
            )
            Path(os.environ[ANSWER]).write_text(json.dumps(found))
            raise SystemExit(0)

    config = Path(out) / 'stops_after_first.py'
    config.write_text(
        f'_base_ = {str(CONFIG)!r}\n'
        'custom_hooks = [dict(type="StopAfterFirst")]\n'
        f'train_dataloader = dict(num_workers={workers})\n'
    )
    train.main([str(config), '--work-dir', out])


def children() -> list[int]:
    """Returns the processes that this one has started."""
    tasks = Path('/proc/self/task').glob('*/children')
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def own_megabytes(pid: int) -> float:
    """Returns the memory that a process shares with no other."""
    text = Path(f'/proc/{pid}/smaps_rollup').read_text()
    found = re.findall(r'^Private_\w+:\s+(\d+) kB$', text, re.MULTILINE)
    return sum(map(int, found)) / 1024


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('world', type=Path, help='folder of a mini world with info files')
    add('--original', action='store_true', help="as VAD's own info files")
    add('--workers', type=int, default=0, help='of the training data')
    add('--rounds', type=int, default=1, help='starts; the median counts')
    add('--seconds', type=float, default=25.0, help='goal')
    add('--megabytes', type=float, default=600.0, help='goal')
    add('--child', metavar='FOLDER', help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    args = parse_args(argv)
    if args.child:
        train_once(args.child, args.workers)
        return 0
    rows = {}
    small = dict.fromkeys(SPLITS, 40)
    for counts in (small, SPLITS):
        with tempfile.TemporaryDirectory() as folder:
            make_folder(args.world, Path(folder), counts, args.original)
            found = [
                first_iteration(Path(folder), args.workers)
                for _ in range(args.rounds)
            ]
        found.sort(key=lambda one: one['seconds'])
        rows[sum(counts.values())] = found[len(found) // 2]
    print(
        '| keyframes | first iteration (s) | CPU (s) | peak (MB) | '
        'workers alone (MB) |\n|---|---|---|---|---|'
    )
    for count, row in rows.items():
        print(
            f'| {count} | {row["seconds"]:.1f} | {row["cpu_seconds"]:.1f} | '
            f'{row["peak_mb"]:.0f} | {row["workers_mb"]:.0f} |'
        )
    few, many = rows.values()
    grown = many['peak_mb'] - few['peak_mb']
    print(f'\nthe keyframes take {grown:.0f} MB at the peak')
    return int(many['seconds'] > args.seconds or grown > args.megabytes)


if __name__ == '__main__':
    sys.exit(main())
