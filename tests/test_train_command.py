"""tools/train.py and the flags of tools/test.py."""

import os
import runpy
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from tiny_project import CONFIG, LIVELY, write_checkpoint, write_config

from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.run.cli import stoppable

TRAIN = ROOT / 'tools' / 'train.py'
TEST = ROOT / 'tools' / 'test.py'
SEEDED = """
train_cfg = dict(by_epoch=True, max_epochs=3)
randomness = dict(seed=3)
"""


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path, CONFIG + LIVELY + SEEDED)


def train(config, *flags, work='work'):
    work = config.parent / work
    words = [config, '--work-dir', work, *flags]
    runpy.run_path(str(TRAIN))['main'](list(map(str, words)))
    return work


def weights(work):
    return load_checkpoint_file(work / 'latest.pth')['state_dict']


def equal(one, two):
    one, two = weights(one), weights(two)
    return all(torch.equal(one[k], two[k]) for k in one)


def test_it_trains_with_the_safe_hooks_and_dumps_its_config(config):
    work = train(config)
    assert {f'epoch_{i}.pth' for i in (1, 2, 3)} <= set(os.listdir(work))
    assert (work / 'latest.pth').resolve() == work / 'epoch_3.pth'
    text = (work / 'tiny_config.py').read_text()
    assert 'mmprune.SafeCheckpointHook' in text
    assert 'mmprune.SeedHook' in text


@pytest.mark.parametrize('named', [False, True])
def test_resume_ends_with_the_bits_of_the_run_that_was_never_stopped(
    config, named
):
    never = train(config, work='never')
    short = train(config, '--cfg-options', 'train_cfg.max_epochs=1')
    assert not equal(never, short)
    flags = [short / 'epoch_1.pth'] if named else []
    again = train(config, '--resume', *flags)
    assert load_checkpoint_file(again / 'latest.pth')['meta']['epoch'] == 3
    assert equal(never, again)


def test_resume_without_a_checkpoint_starts_anew(config, capsys):
    work = train(config, '--resume')
    assert 'no checkpoint in' in capsys.readouterr().out
    assert (work / 'epoch_3.pth').exists()


def test_another_run_is_not_overwritten(config, capsys):
    work = train(config)
    before = {p: p.stat().st_mtime_ns for p in work.rglob('*')}
    line = fails(capsys, train, config)
    assert f'{work} holds another run (epoch_1.pth, epoch_2.pth,' in line
    assert 'go on with it by --resume, overwrite it by --force' in line
    assert 'or choose another --work-dir' in line
    assert before == {p: p.stat().st_mtime_ns for p in work.rglob('*')}
    both = fails(capsys, train, config, '--resume', '--force')
    assert '--resume keeps what --force removes' in both


def test_force_leaves_nothing_of_the_older_run(config, capsys):
    work = train(config)
    (work / 'notes.txt').write_text('mine')
    once = ['--cfg-options', 'train_cfg.max_epochs=1']
    start = [*once, f'load_from={work / "epoch_3.pth"}']
    assert '--force would remove' in fails(
        capsys, train, config, '--force', *start
    )
    train(config, '--force', *once)
    names = {p.name for p in work.iterdir() if p.is_file()}
    assert {'epoch_1.pth', 'latest.pth', 'notes.txt'} <= names
    assert not {'epoch_2.pth', 'epoch_3.pth'} & names


def test_what_mmengine_says_of_itself_goes_to_the_log_alone(config, capsys):
    work = train(config)
    shown = capsys.readouterr()
    assert len((shown.out + shown.err).splitlines()) <= 3
    assert '[12/12] training, epoch 3 of 3' in shown.err
    (log,) = work.glob('*/*.log')
    text = log.read_text()
    for part in (
        'System environment',
        'Config:',
        'Hooks will',
        'Epoch(train)',
    ):
        assert part in text and part not in shown.out


def test_auto_scale_lr_reaches_the_runner(config):
    scale = ['--cfg-options', 'auto_scale_lr.base_batch_size=8']
    plain = train(config, work='plain')
    scaled = train(config, '--auto-scale-lr', *scale)
    optimizer = [
        load_checkpoint_file(w / 'latest.pth')['optimizer']['param_groups'][0]
        for w in (plain, scaled)
    ]
    assert optimizer[1]['lr'] == optimizer[0]['lr'] / 4


def test_sigterm_is_one_sentence_with_the_command_to_resume(config, tmp_path):
    work = tmp_path / 'work'
    long = ['--cfg-options', 'train_cfg.max_epochs=500']
    words = [TRAIN, config, '--work-dir', work, *long]
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**os.environ, 'PYTHONPATH': str(ROOT / 'tests')},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.time() + 300
    # A third one is written after latest.pth became the second.
    while not (work / 'epoch_3.pth').exists() and time.time() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    (line,) = [s for s in errors.splitlines() if 'stopped by SIGTERM' in s]
    assert 'epoch_' in line
    assert line.endswith('--resume')
    assert 'Traceback' not in errors
    assert load_checkpoint_file(work / 'latest.pth')['meta']['epoch'] >= 2


@pytest.mark.parametrize('flag', [['--resume', 'a.pth'], ['--resume=a.pth']])
def test_the_command_to_resume_names_a_checkpoint_only_without_a_later_one(
    monkeypatch, tmp_path, flag
):
    hint = runpy.run_path(str(TRAIN))['_how_to_go_on']
    monkeypatch.setattr(sys, 'argv', ['train.py', 'c.py', *flag, '--amp'])
    assert hint(tmp_path).endswith('train.py c.py --amp --resume a.pth')
    (tmp_path / 'latest.pth').touch()
    assert hint(tmp_path).endswith('train.py c.py --amp --resume')


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_stop_that_a_library_turns_into_another_error_is_one(
    capsys, number, code
):
    def swallow():
        try:
            signal.raise_signal(number)
        except BaseException as error:  # as mmengine does around yapf
            raise SyntaxError('cannot format') from error

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as end, stoppable(lambda: 'go on'):
            swallow()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert end.value.code == code
    assert capsys.readouterr().err.startswith('stopped by ')


def fails(capsys, call, *args):
    with pytest.raises(SystemExit) as end:
        call(*args)
    assert end.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    (line,) = [e for e in errors if e.startswith('error: ')]
    return line


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--auto-scale-lr'], 'base_batch_size'),
        (['--resume', '/nowhere.pth'], 'no checkpoint at /nowhere.pth'),
        (['--launcher', 'slurm'], 'SLURM_PROCID'),
        (['--cfg-options', 'train_cfg=None'], 'has no `train_cfg`'),
        (['--cfg-options', 'model.type.x=1'], 'does not fit the config'),
        (
            ['--cfg-options', 'train_dataloader.dataset.folder=/nowhere'],
            '/nowhere',
        ),
    ],
)
def test_what_a_user_causes_is_one_sentence(capsys, config, flags, message):
    assert message in fails(capsys, train, config, *flags)


def test_amp_without_cuda(capsys, config, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert '--amp needs a CUDA' in fails(capsys, train, config, '--amp')


# -- the flags of tools/test.py --------------------------------------------


def evaluate(config, *flags):
    words = [config, write_checkpoint(config.parent), *flags]
    words += ['--work-dir', config.parent / 'test']
    return runpy.run_path(str(TEST))['main'](list(map(str, words)))


PARTS = "test_evaluator = dict(type='TinyParts')\n"


def test_eval_chooses_parts_of_the_evaluator(config):
    config.write_text(config.read_text() + PARTS)
    assert set(evaluate(config)) == {'mean', 'most'}
    assert set(evaluate(config, '--eval', 'most')) == {'most'}


def test_an_unknown_part_is_refused_with_the_known_ones(capsys, config):
    config.write_text(config.read_text() + PARTS)
    message = fails(capsys, evaluate, config, '--eval', 'bbox')
    assert 'bbox' in message
    assert 'mean, most' in message


def test_an_evaluator_without_parts_says_so(capsys, config):
    message = fails(capsys, evaluate, config, '--eval', 'bbox')
    assert 'TinyMean of the config has no parts' in message


def test_tmpdir_is_taken_and_what_is_in_it_stays(config, tmp_path):
    folder = tmp_path / 'tmp'
    folder.mkdir()
    (folder / 'mine.txt').write_text('mine')
    flags = ['--tmpdir', folder, '--launcher', 'none']
    assert set(evaluate(config, *flags)) == {'mean'}
    assert (folder / 'mine.txt').exists()
