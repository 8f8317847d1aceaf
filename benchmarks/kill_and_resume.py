"""Kills prune and retrain at random moments and resumes it, again and again.

    python benchmarks/kill_and_resume.py --kills 20

A tiny model with dropout and noisy data is pruned and trained, structured
and unstructured. After each `kill -9` every checkpoint under its final name
must be readable; a run that was resumed until its end must have the weights
and the optimizer state of the run that was never stopped, bit by bit. Prints
a table; the exit code is 1 if something was lost.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import torch  # noqa: E402
from tiny_project import (  # noqa: E402
    CONFIG,
    LIVELY,
    write_checkpoint,
    write_config,
)

from mmprune.checkpoints.reading import load_checkpoint_file  # noqa: E402

COMMAND = [sys.executable, str(ROOT / 'tools' / 'prune_and_retrain.py')]
FLAGS = ['--fine-tune', '--train', 'both', '--no-eval']
# Without so many timed forwards a tiny model is pruned too fast to be hit.
FLAGS += ['--latency-runs', '500']


def start(files: list[Path], folder: Path, *flags: str) -> subprocess.Popen:
    """Starts the command; returns when it has read its flags."""
    words = [*COMMAND, *files, '--output-dir', folder, *FLAGS, *flags]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    env['PYTHONPATH'] = str(ROOT / 'tests')
    process = subprocess.Popen(
        list(map(str, words)),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith(('[1/', 'the pruned models are')):
            break
    # Unread output would stop the process.
    process.drain = subprocess.Popen(
        ['cat'], stdin=process.stdout, stdout=subprocess.DEVNULL
    )
    return process


def phase(folder: Path) -> str:
    """Says how far a stopped run had come."""
    trained = sorted(folder.glob('*/latest.pth'))
    if trained:
        last = trained[-1]
        epoch = load_checkpoint_file(last)['meta']['epoch']
        return f'{last.parent.name}, epoch {epoch}'
    if (folder / 'report.json').exists():
        return 'pruned'
    return 'pruning'


def unreadable(folder: Path) -> Iterator[str]:
    """Yields the files under final names that cannot be read."""
    for path in folder.rglob('*.pth'):
        hidden = any(part.startswith('.') for part in path.parts)
        try:
            if not hidden:
                load_checkpoint_file(path)['state_dict']
        except (ValueError, OSError, KeyError) as error:
            yield f'{path.name}: {error}'
    if (folder / 'report.json').exists():
        json.loads((folder / 'report.json').read_text())


def same(one: Path, two: Path) -> bool:
    """Returns whether two finished runs hold the same bits."""
    for place in ('fine_tuned', 'fine_tuned_unstructured'):
        a, b = (
            load_checkpoint_file(folder / place / 'latest.pth')
            for folder in (one, two)
        )
        for name, tensor in a['state_dict'].items():
            if not torch.equal(tensor, b['state_dict'][name]):
                return False
        for i, entry in a['optimizer']['state'].items():
            other = b['optimizer']['state'][i]
            for key, value in entry.items():
                if not torch.equal(value, other[key]):
                    return False
    return True


def kill_and_resume(
    files: list[Path], folder: Path, moment: float, epochs: str
) -> str:
    """Kills a run after ``moment`` seconds and resumes it until its end.

    Returns:
        How far it had come, '' if it was over before.

    Raises:
        RuntimeError: If a file cannot be read or the resumed run fails.
    """
    flags = ['--fine-tune-epochs', epochs]
    process = start(files, folder, *flags)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.kill()
    if finish(process) == 0:
        return ''
    broken = list(unreadable(folder))
    if broken:
        raise RuntimeError(f'unreadable after a kill: {broken}')
    found = phase(folder)
    code = finish(start(files, folder, *flags, '--resume'))
    if code:
        raise RuntimeError(f'the resumed run ended with {code}')
    return found


def finish(process: subprocess.Popen) -> int:
    """Waits for a process; returns its exit code."""
    code = process.wait()
    process.drain.wait()
    return code


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--epochs', default='40', help='of each training')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    scratch = Path(tempfile.mkdtemp(prefix='kill_and_resume_'))
    config = write_config(scratch, CONFIG + LIVELY)
    files = [config, write_checkpoint(scratch, momentum=True, epoch=12)]
    never = scratch / 'never'
    process = start(files, never, '--fine-tune-epochs', args.epochs)
    begin = time.time()
    if finish(process):
        raise RuntimeError('the run that is never stopped failed')
    seconds = time.time() - begin
    pruning = (never / 'report.json').stat().st_mtime - begin
    print(
        f'never stopped: {seconds:.1f} s after its imports, pruning '
        f'{pruning:.1f} s of them',
        flush=True,
    )
    rows = []
    while len(rows) < args.kills:
        folder = scratch / 'killed'
        # Every fourth kill is aimed at pruning, every eighth at its end,
        # when the files are written.
        first, last = 0, seconds
        if len(rows) % 4 == 0:
            first = 0.9 * pruning if len(rows) % 8 == 0 else 0
            last = 1.05 * pruning
        moment = random.uniform(first, last)
        found = kill_and_resume(files, folder, moment, args.epochs)
        if found:
            rows.append((found, same(never, folder)))
            print(f'{len(rows)}: killed at {found}, {rows[-1][1]}', flush=True)
        shutil.rmtree(folder)
    print('\n| run | killed at | same bits as the run never stopped |')
    print('|---|---|---|')
    for i, (place, equal) in enumerate(rows):
        print(f'| {i} | {place} | {"yes" if equal else "NO"} |')
    print(f'\n{len(rows)} kills, every checkpoint readable after each')
    shutil.rmtree(scratch)
    return 0 if all(equal for _, equal in rows) else 1


if __name__ == '__main__':
    sys.exit(main())
