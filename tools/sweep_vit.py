"""Runs several configs of iterative pruning, one per GPU at a time.

    python tools/sweep_vit.py projects/configs/vit/vit_small_cifar10_*.py

Where there is one GPU, or none, they run one after another. A run that is
finished is left alone, one that was stopped is resumed. At the end all runs
are compared.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmprune.errors import blame  # noqa: E402
from mmprune.run.cli import fail_in_one_sentence, stoppable  # noqa: E402
from mmprune.run.flags import argument, option, read  # noqa: E402
from mmprune.run.options import config_options  # noqa: E402

EXPERIMENTS = [
    f'projects/configs/vit/vit_small_{data}_{method}_70p.py'
    for data in ('cifar10', 'cifar100')
    for method in ('refill', 'rsst')
]


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What is run, and where."""

    configs: tuple[str, ...] = argument(
        'configs of the experiments',
        tuple(str(ROOT / name) for name in EXPERIMENTS),
        nargs='*',
        shown='the four of the guide',
    )
    work_dir: str = option('work_dirs/sweep_vit', 'one folder each in it')
    gpu_ids: tuple[int, ...] = option(
        (), 'GPUs to run on', nargs='+', type=int, shown='all that are there'
    )
    cfg_options: tuple[str, ...] = config_options()


def find_devices(asked: Sequence[int] | None) -> list[str]:
    """Returns what CUDA_VISIBLE_DEVICES is for each run at a time.

    Raises:
        ValueError: If a GPU is asked for that is not there.
    """
    import torch  # --help does without

    count = torch.cuda.device_count()
    missing = [i for i in asked or () if not 0 <= i < count]
    if missing:
        raise ValueError(
            f'--gpu-ids {missing}: PyTorch sees {count} GPUs, counted from 0'
        )
    numbers = asked or range(count)
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = visible.split(',') if visible and count else None
    return [names[i] if names else str(i) for i in numbers] or ['']


def finished(folder: Path) -> bool:
    """Returns whether a run has exported its model."""
    path = folder / 'rounds.json'
    if not path.is_file():
        return False
    with blame(f'{path} cannot be read as JSON'):
        # Older runs call it shipped.
        found = json.loads(path.read_text()).keys()
    return bool({'exported', 'shipped'} & found)


def start(config: str, folder: Path, device: str, options: Sequence[str]):
    """Starts one run; its output goes to ``sweep.log`` in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, '-u', str(ROOT / 'tools' / 'train.py'), config),
        *('--work-dir', str(folder), '--resume'),
    ]
    if options:
        command += ['--cfg-options', *options]
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': device}
    with (folder / 'sweep.log').open('a') as log:
        return subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT
        )


def sweep(
    waiting: list[tuple[str, Path]], devices: list[str], options: Sequence[str]
) -> list[str]:
    """Runs all; returns the configs that failed."""
    running: dict[str, tuple] = {}
    failed = []
    try:
        while waiting or running:
            for device in devices:
                if device in running or not waiting:
                    continue
                config, folder = waiting.pop(0)
                print(f'{config} -> {folder} on {device or "CPU"}', flush=True)
                process = start(config, folder, device, options)
                running[device] = (config, folder, process)
            time.sleep(0.5)
            for device, (config, folder, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[device]
                if process.returncode:
                    failed.append(config)
                    print(f'{config} failed, see {folder / "sweep.log"}')
    finally:
        for *_, process in running.values():
            process.terminate()
    return failed


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    (args,) = read('Run several experiments.', (SweepOptions,), argv)
    for config in args.configs:
        if not Path(config).is_file():
            raise ValueError(f'no config at {config}')
    runs = [(c, Path(args.work_dir) / Path(c).stem) for c in args.configs]
    if len({folder for _, folder in runs}) < len(runs):
        raise ValueError(
            'two configs have one name, and with it one folder; run them '
            'with two --work-dir'
        )
    for config, folder in runs:
        if finished(folder):
            print(f'{config} is finished and left alone: {folder}', flush=True)
    waiting = [(c, f) for c, f in runs if not finished(f)]
    with stoppable(lambda: 'the same command continues'):
        failed = sweep(waiting, find_devices(args.gpu_ids), args.cfg_options)
    done = [str(folder) for _, folder in runs if finished(folder)]
    if done:
        command = [
            *(sys.executable, str(ROOT / 'tools' / 'compare_rounds.py')),
            *(*done, '--out', args.work_dir),
        ]
        if subprocess.run(command).returncode:
            raise ValueError(f'the runs in {args.work_dir} are not compared')
    if failed:
        raise ValueError(
            f'{len(failed)} of {len(runs)} runs failed: {", ".join(failed)}'
        )


if __name__ == '__main__':
    main()
