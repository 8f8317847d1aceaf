"""Fine-tuning with a config whose loop counts iterations."""

import runpy
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.runner import Runner
from tiny_project import CONFIG, write_checkpoint, write_config

from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.hooks import UnreadDataHook
from mmprune.run.training.length import Length
from mmprune.run.training.recipe import FINE_TUNE, schedule

PRUNE = ROOT / 'tools' / 'prune_and_retrain.py'
# Four of the six iterations of the config become those of a run; samples
# without end, as mmengine recommends, and drawn with noise.
ITERATIONS = """
model = dict(type='TinyModel', width=16, dropout=0.3)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='TinyImages', count=8, noise=0.5),
)
train_cfg = dict(by_epoch=False, max_iters=6, val_interval=50)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.25, by_epoch=False, begin=0, end=2),
    dict(type='MultiStepLR', by_epoch=False, milestones=[3], gamma=0.1),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
)
"""


@pytest.fixture
def files(tmp_path):
    config = write_config(tmp_path, CONFIG + ITERATIONS)
    return config, write_checkpoint(tmp_path, momentum=True, epoch=0, iter=100)


def run(files, *flags, out='out'):
    folder = files[0].parent / out
    quick = ['--latency-runs', '0', '--mode', 'structured', '--no-eval']
    words = [*files, *quick, '--output-dir', folder, '--fine-tune', *flags]
    runpy.run_path(str(PRUNE))['main'](list(map(str, words)))
    return folder


def fails(capsys, files, *flags):
    with pytest.raises(SystemExit) as end:
        run(files, *flags)
    assert end.value.code == 2
    assert not (files[0].parent / 'out').exists()
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith('error: ')
    ]
    return line


def test_iterations_are_carried_on(files):
    folder = run(files, '--fine-tune-iters', 4) / 'fine_tuned'
    names = {p.name for p in folder.glob('*.pth')}
    assert names == {
        'iter_102.pth',
        'iter_104.pth',
        'latest.pth',
        'start.pth',
    }
    assert (folder / 'latest.pth').resolve().name == 'iter_104.pth'
    last = load_checkpoint_file(folder / 'latest.pth')
    assert last['meta']['iter'] == 104
    # The momentum of the dense checkpoint came along.
    start = load_checkpoint_file(folder / 'start.pth')
    assert len(start['optimizer']['state']) == 16
    text = (folder / 'tiny_config.py').read_text()
    assert 'max_iters=104' in text


def test_retraining_counts_from_zero(files):
    folder = run(files, '--retrain', '--fine-tune-iters', 3) / 'retrained'
    assert {p.name for p in folder.glob('iter_*')} == {
        'iter_2.pth',
        'iter_3.pth',
    }


def test_the_data_of_the_earlier_training_is_not_read_again(
    files, monkeypatch
):
    from tiny_project import TinyImages

    read, original = [], TinyImages.prepare_data

    def prepare_data(self, idx):
        read.append(idx)
        return original(self, idx)

    monkeypatch.setattr(TinyImages, 'prepare_data', prepare_data)
    run(files, '--fine-tune-iters', 2)
    # Two batches of two; and the example for counting, a sample or two more
    # at the start of an iterator, but not 100 batches.
    assert 4 <= len(read) <= 8


def test_a_stopped_run_ends_with_the_bits_of_one_never_stopped(files):
    never = run(files, '--fine-tune-iters', 4, out='never') / 'fine_tuned'
    folder = run(files, '--fine-tune-iters', 4) / 'fine_tuned'
    # As a kill after the second iteration leaves it.
    (folder / 'iter_104.pth').unlink()
    (folder / 'latest.pth').unlink()
    (folder / 'latest.pth').symlink_to('iter_102.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_102.pth'))
    torch.manual_seed(99)
    run(files, '--fine-tune-iters', 4, '--resume')
    one = load_checkpoint_file(folder / 'iter_104.pth')
    two = load_checkpoint_file(never / 'iter_104.pth')
    for name, tensor in two['state_dict'].items():
        assert torch.equal(one['state_dict'][name], tensor), name
    for i, entry in two['optimizer']['state'].items():
        other = one['optimizer']['state'][i]['momentum_buffer']
        assert torch.equal(entry['momentum_buffer'], other)


def test_a_finished_training_is_not_done_again(files):
    folder = run(files, '--fine-tune-iters', 2)
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob('*.pth')}
    run(files, '--fine-tune-iters', 2, '--resume')
    assert stamps == {p: p.stat().st_mtime_ns for p in folder.rglob('*.pth')}


def test_a_stock_runner_trains_from_the_written_config(files, tmp_path):
    folder = run(files, '--fine-tune-iters', 2) / 'fine_tuned'
    kept = load_checkpoint_file(folder / 'iter_102.pth', mmap=False)
    (folder / 'iter_102.pth').unlink()
    cfg = Config.fromfile(folder / 'tiny_config.py')
    cfg.experiment_name = f'iterations_{tmp_path.name}'
    Runner.from_cfg(cfg).train()
    again = load_checkpoint_file(folder / 'iter_102.pth')
    for name, tensor in kept['state_dict'].items():
        assert torch.equal(again['state_dict'][name], tensor)


def test_schedulers_are_stretched_to_the_iterations():
    given = [
        dict(type='PolyLR', by_epoch=False, begin=0, end=100, eta_min=0.01),
        dict(type='MultiStepLR', by_epoch=True, milestones=[2, 4]),
    ]
    length = Length(2000, 30, first=500, by_epoch=False)
    warmup, poly, steps = schedule(given, FINE_TUNE, length, 20.0)
    assert warmup['end'] == 500
    assert poly['end'] == 2000
    assert (steps['milestones'], steps['end']) == ([40, 80], 67)
    assert (length.iterations, length.last) == (2000, 2500)
    assert str(length) == '2000 iterations'


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ([], 'trains by iterations, and --fine-tune-epochs counts epochs; '),
        (['--fine-tune-epochs', 2], 'give --fine-tune-iters'),
        (
            ['--fine-tune-epochs', 2, '--fine-tune-iters', 3],
            'two lengths of one training',
        ),
        (['--fine-tune-iters', 0], '--fine-tune-iters is at least 1'),
    ],
)
def test_the_wrong_count_is_refused_before_pruning(
    capsys, files, flags, message
):
    assert message in fails(capsys, files, *flags)


def test_iterations_with_a_config_that_counts_epochs(capsys, files):
    write_config(files[0].parent, CONFIG)
    message = fails(capsys, files, '--fine-tune-iters', 3)
    assert 'trains by epochs, and --fine-tune-iters counts' in message


def test_checkpoints_and_logs_count_iterations_without_being_told(files):
    text = CONFIG + ITERATIONS + 'default_hooks = dict()\n'
    write_config(files[0].parent, text)
    folder = run(files, '--fine-tune-iters', 3) / 'fine_tuned'
    assert (folder / 'iter_103.pth').exists()
    cfg = Config.fromfile(folder / 'tiny_config.py')
    assert not cfg.log_processor.by_epoch


def test_skipped_items_cost_nothing():
    loop = SimpleNamespace(dataloader_iterator=iter([7, 8]))
    UnreadDataHook(2).before_train(SimpleNamespace(train_loop=loop))
    assert list(loop.dataloader_iterator) == [None, None, 7, 8]
