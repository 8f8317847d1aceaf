"""Trainings of pruned models, stopped, resumed and done again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from tiny_fine_tuning import (
    PRUNE,
    QUICK,
    fails,
    run,
    same_weights,
    write_files,
)
from tiny_project import LIVELY

from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.run.training.start import digest


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path)


def test_resume_of_a_finished_run_does_nothing_again(files):
    folder = run(files, '--fine-tune', '--fine-tune-epochs', 1)
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob('*.pth')}
    run(files, '--fine-tune', '--fine-tune-epochs', 1, '--resume')
    assert stamps == {p: p.stat().st_mtime_ns for p in folder.rglob('*.pth')}


def test_resume_trains_what_was_only_pruned(files):
    folder = run(files)
    stamp = (folder / 'tiny_pruned.pth').stat().st_mtime_ns
    run(files, '--fine-tune', '--fine-tune-epochs', 1, '--resume')
    assert (folder / 'fine_tuned' / 'epoch_13.pth').exists()
    assert (folder / 'tiny_pruned.pth').stat().st_mtime_ns == stamp


def test_resume_prunes_again_what_did_not_finish(files):
    folder = run(files)
    (folder / 'report.json').unlink()
    run(files, '--resume')
    assert (folder / 'report.json').exists()


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--pruning-ratio', '0.4'], 'sparsity 0.3 there, 0.4 now'),
        (['--fine-tune-epochs', '2'], 'started with other options'),
        (['--cfg-options', 'model.dropout=0.1'], 'cfg_options None there'),
    ],
)
def test_resume_with_other_options_is_refused(capsys, files, flags, message):
    run(files, '--fine-tune', '--fine-tune-epochs', 1)
    given = ['--fine-tune', '--fine-tune-epochs', 1, '--resume', *flags]
    assert message in fails(capsys, files, *given)


def test_force_removes_the_training_of_an_older_run(files):
    folder = run(files, '--fine-tune', '--fine-tune-epochs', 1)
    run(files, '--force')
    assert not (folder / 'fine_tuned').exists()


def start(files, *flags, out='out'):
    """Starts the command in a process of its own."""
    # A shell starts background jobs with SIGINT ignored, and children inherit
    # that; a handler here gives the child the default again.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = files[0].parent / out
    words = [PRUNE, *files, *QUICK, '--output-dir', folder, *flags]
    env = {
        **os.environ,
        'PYTHONPATH': f'{ROOT / "tests"}',
        'OMP_NUM_THREADS': '1',
    }
    return folder, subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(started):
    folder, process = started
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder


def wait_for(path: Path, process, seconds=300):
    end = time.time() + seconds
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.time() < end
        time.sleep(0.01)


LONG = ('--fine-tune', '--fine-tune-epochs', 20)


@pytest.fixture(scope='module')
def never_stopped(tmp_path_factory):
    """The files of a run, and what it wrote in one go."""
    folder = tmp_path_factory.mktemp('never_stopped')
    files = write_files(folder, LIVELY)
    return files, finish(start(files, *LONG))


@pytest.mark.parametrize('name', ['SIGKILL', 'SIGTERM', 'SIGINT'])
def test_a_stopped_run_that_is_resumed_ends_with_the_same_bits(
    never_stopped, name
):
    files, never = never_stopped
    folder, process = start(files, *LONG, out=name)
    # Once it is there, latest.pth leads to the one before it or to it.
    wait_for(folder / 'fine_tuned' / 'epoch_16.pth', process)
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=120)
    stopped = load_checkpoint_file(folder / 'fine_tuned' / 'latest.pth')
    assert 15 <= stopped['meta']['epoch'] < 32
    if name != 'SIGKILL':
        code, word = (143, name) if name == 'SIGTERM' else (130, 'Ctrl-C')
        assert process.returncode == code
        (line,) = [s for s in errors.splitlines() if 'stopped by' in s]
        assert word in line
        assert 'epoch_' in line
        assert line.endswith('--resume')
    # Sums depend on the number of threads: all these runs have one.
    finish(start(files, *LONG, '--resume', out=name))
    last = 'fine_tuned/epoch_32.pth'
    assert same_weights(folder / last, never / last)
    one, two = (
        load_checkpoint_file(folder / last),
        load_checkpoint_file(never / last),
    )
    for i, entry in one['optimizer']['state'].items():
        other = two['optimizer']['state'][i]['momentum_buffer']
        assert torch.equal(entry['momentum_buffer'], other)


def test_the_digest_tells_plans_and_weights_apart(files):
    folder = run(files)
    checkpoint = load_checkpoint_file(folder / 'tiny_structured_pruned.pth')
    first = digest(checkpoint)
    checkpoint['state_dict']['one.weight'][0, 0, 0, 0] += 1
    second = digest(checkpoint)
    checkpoint['meta']['pruning_plan']['keep']['one'].pop()
    assert len({first, second, digest(checkpoint)}) == 3
