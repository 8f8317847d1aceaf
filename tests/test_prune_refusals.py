"""What tools/prune_and_retrain.py refuses, and that it leaves files alone."""

import os
import pickle

import pytest
import torch
from tiny_project import CONFIG, write_config
from tiny_pruning import prune, write_files


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path)


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def fails(capsys, files, *flags):
    """The command ends with 2, one sentence, and nothing written."""
    folder = files[0].parent / 'out'
    before = sorted(folder.rglob('*')) if folder.exists() else None
    with pytest.raises(SystemExit) as end:
        prune(files, *flags)
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    assert len(errors) == 1
    after = sorted(folder.rglob('*')) if folder.exists() else None
    assert before == after
    return errors[0]


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--pruning-ratio', '1'], r'in [0, 1), found 1'),
        (['--pruning-ratio', '-0.1'], r'in [0, 1), found -0.1'),
        (['--pruning-ratio', 'nan'], r'in [0, 1), found nan'),
        (['--protect', 'nowhere'], "'nowhere' matches none of the"),
        (['--protect', '('], 'is no regular expression'),
        (['--device', 'tpu'], '--device is cpu, cuda or cuda:N'),
        (['--pruning-ratio', '0.99'], 'be removed; lower the sparsity'),
        (
            ['--pruning-ratio', '0.99', '--target', 'macs'],
            'asked to remove 99.0%',
        ),
        (['--target', 'params', '--round-to', '64'], '100.0% still remain'),
        (['--round-to', '0'], 'at least 1'),
        (['--for', 'tensorrt', '--round-to', '8'], 'rounds to 16'),
        (['--min-keep', '0', '--mode', 'unstructured'], 'at least 1'),
        (['--min-keep', '1.5'], 'a fraction between 0 and 1, found 1.5'),
        (['--latency-runs', '-1'], 'must not be negative'),
        (['--device', 'cpu:foo'], '--device is cpu, cuda or cuda:N'),
        (['--output-dir', ''], '--output-dir is empty'),
        (['--cfg-options', 'model.foo=1'], 'cannot be built'),
        (['--retrain'], '--retrain goes with --fine-tune'),
        (['--cfg-options', 'width'], 'takes KEY=VALUE'),
        (['--cfg-options', 'pruning.type=mmprune.Nobody'], 'Nobody'),
    ],
)
def test_bad_flags(capsys, files, flags, message):
    assert message in fails(capsys, files, *flags)


def test_cuda_asked_for_and_absent(capsys, files, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert 'sees no CUDA device' in fails(capsys, files, '--device', 'cuda')


def test_unknown_choice_is_told_by_argparse(files):
    with pytest.raises(SystemExit) as end:
        prune(files, '--importance', 'l3')
    assert end.value.code == 2


def broken(kind, files):
    path = files[1]
    if kind == 'missing':
        path.unlink()
    elif kind == 'truncated':
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == 'foreign':
        path.write_text('not a checkpoint')
    elif kind == 'malicious':
        evil = Evil(path.with_name('code_has_run'))
        path.write_bytes(pickle.dumps({'state_dict': evil}))
    elif kind == 'malicious zip':
        evil = Evil(path.with_name('code_has_run'))
        torch.save({'state_dict': evil}, path)
    elif kind == 'other model':
        torch.save({'state_dict': {'conv1.weight': torch.ones(2)}}, path)
    elif kind == 'wrong types':
        torch.save({'state_dict': [1], 'meta': 'x'}, path)
    elif kind == 'nested':
        torch.save({'model': torch.load(path)['state_dict']}, path)
    elif kind == 'not finite':
        state = torch.load(path)['state_dict']
        state['one.bias'][3] = float('nan')
        torch.save({'state_dict': state}, path)
    elif kind == 'a part':
        state = torch.load(path)['state_dict']
        part = {k: v for k, v in state.items() if k.startswith('branch')}
        torch.save({'state_dict': part}, path)
    return files


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('missing', 'dense.pth'),
        ('truncated', 'dense.pth'),
        ('foreign', 'dense.pth'),
        ('malicious', '--trust-checkpoint'),
        ('malicious zip', '--trust-checkpoint'),
        ('other model', 'No key fits'),
        ('wrong types', 'the file has meta, state_dict'),
        ('nested', 'the file has model'),
        ('not finite', 'one.bias holds NaN'),
        ('a part', 'keys are missing (stem.weight, stem.bias, one.weight'),
    ],
)
def test_bad_checkpoints(capsys, files, kind, message):
    assert message in fails(capsys, broken(kind, files))
    assert not files[1].with_name('code_has_run').exists()


def test_trust_is_the_explicit_way_around(files):
    state = torch.load(files[1])['state_dict']
    torch.save({'state_dict': state, 'extra': Harmless()}, files[1])
    folder = prune(files, '--trust-checkpoint')
    assert (folder / 'report.md').exists()


class Harmless:
    """A class of the user's, which the safe loader cannot know."""


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('x = 1\n', 'has no `model`'),
        ('model = dict(type=\n', 'cannot be read as an mmengine config'),
        ("_base_ = './nowhere.py'\n", 'nowhere.py'),
        ("model = dict(type='Nobody')\n", 'Nobody'),
    ],
)
def test_bad_configs(capsys, files, text, message):
    write_config(files[0].parent, text)
    assert message in fails(capsys, files)


def test_missing_config(capsys, files):
    files[0].unlink()
    assert 'no config at' in fails(capsys, files)


def test_config_that_does_not_say_how_to_prune(capsys, files):
    text = CONFIG.replace('pruning = ', 'other = ')
    write_config(files[0].parent, text)
    assert 'no `pruning` entry' in fails(capsys, files)


def test_another_run_is_not_overwritten(capsys, files):
    folder = prune(files)
    assert '--force' in fails(capsys, files)
    stamp = (folder / 'report.json').stat().st_mtime_ns
    prune(files, '--force')
    assert (folder / 'report.json').stat().st_mtime_ns > stamp


def test_files_of_an_older_run_go_with_force(files):
    folder = prune(files)
    (folder / 'notes.txt').write_text('mine')
    prune(files, '--force', '--mode', 'structured')
    names = {p.name for p in folder.iterdir()}
    assert 'tiny_pruned.pth' not in names
    assert {'notes.txt', 'tiny_structured_pruned.pth'} < names


def test_the_traceback_shows_on_demand(files, monkeypatch):
    monkeypatch.setenv('MMPRUNE_TRACEBACK', '1')
    with pytest.raises(ValueError, match='found 2'):
        prune(files, '--pruning-ratio', '2')


def test_output_that_is_a_file_or_read_only(capsys, files, monkeypatch):
    (files[0].parent / 'out').write_text('')
    assert 'is a file' in fails(capsys, files)
    (files[0].parent / 'out').unlink()
    monkeypatch.setattr(os, 'access', lambda *_: False)  # root may write all
    assert 'cannot be written' in fails(capsys, files)


def test_a_pruned_checkpoint_is_not_pruned_again(capsys, files):
    pruned = prune(files) / 'tiny_structured_pruned.pth'
    message = fails(capsys, (files[0], pruned), '--force')
    assert 'has been pruned before' in message


def test_a_failing_write_leaves_nothing_behind(files, monkeypatch):
    folder = files[0].parent / 'out'

    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises((OSError, SystemExit)):
        prune(files)
    assert not folder.exists()
