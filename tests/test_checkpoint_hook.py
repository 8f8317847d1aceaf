"""Neither a crash nor a full disk costs the last good checkpoint."""

import errno
import os
import resource
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tiny_training import config, final, run

from mmprune.atomic_file import (
    point_to,
    remove_temporary,
    write_whole,
)
from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.hooks.checkpoint_hook import CheckpointWriteError


def hooks(**options) -> dict:
    checkpoint = dict(type='mmprune.SafeCheckpointHook', interval=1, **options)
    return dict(default_hooks=dict(checkpoint=checkpoint))


def names(folder: Path) -> list[str]:
    """Checkpoints and what leads to them."""
    found = (p.name for p in folder.iterdir() if p.is_file())
    return sorted(n for n in found if not n.endswith('.py'))


@pytest.fixture
def full_disk(monkeypatch):
    """The disk has no room for the n-th checkpoint."""

    def fill(at: int) -> None:
        real, seen = os.fsync, []

        def fsync(handle: int) -> None:
            path = os.readlink(f'/proc/self/fd/{handle}')
            if '.pth.' in path:
                seen.append(path)
                if len(seen) == at:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        monkeypatch.setattr('mmprune.atomic_file.os.fsync', fsync)

    return fill


def test_latest_and_last_checkpoint_lead_to_the_newest(tmp_path):
    run(config(tmp_path, epochs=3, **hooks()))
    assert names(tmp_path) == [
        'epoch_1.pth',
        'epoch_2.pth',
        'epoch_3.pth',
        'last_checkpoint',
        'latest.pth',
    ]
    assert os.readlink(tmp_path / 'latest.pth') == 'epoch_3.pth'
    assert (tmp_path / 'last_checkpoint').read_text() == str(
        tmp_path / 'epoch_3.pth'
    )
    assert final(tmp_path)['meta']['epoch'] == 3


def test_the_number_of_checkpoints_is_kept(tmp_path):
    run(config(tmp_path, epochs=4, **hooks(max_keep_ckpts=2)))
    assert names(tmp_path)[:2] == ['epoch_3.pth', 'epoch_4.pth']
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize('kept', [1, 2])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, full_disk, kept):
    full_disk(at=3)
    with pytest.raises(CheckpointWriteError) as error:
        run(config(tmp_path, epochs=4, **hooks(max_keep_ckpts=kept)))
    assert str(error.value) == (
        f'{tmp_path}/epoch_3.pth could not be written (No space left on '
        f'device); {tmp_path}/epoch_2.pth is unharmed, make room and resume '
        'from it'
    )
    assert error.value.errno == errno.ENOSPC
    epochs = ['epoch_1.pth', 'epoch_2.pth'][-kept:]
    assert names(tmp_path) == [*epochs, 'last_checkpoint', 'latest.pth']
    assert final(tmp_path)['meta']['epoch'] == 2
    resumed = run(
        config(tmp_path, epochs=4, resume=True, **hooks(max_keep_ckpts=kept))
    )
    assert resumed.epoch == 4
    assert final(tmp_path)['meta']['epoch'] == 4


@HOOKS.register_module()
class FakeScore(Hook):
    """Gives each epoch's checkpoint a score, better every time."""

    priority = 'LOWEST'

    def __init__(self, more: float = 0) -> None:
        self.more = more

    def after_train_epoch(self, runner) -> None:
        """Lets the checkpoint hook see a score."""
        (saver,) = (
            h for h in runner.hooks if type(h).__name__ == 'SafeCheckpointHook'
        )
        saver.after_val_epoch(runner, {'acc': runner.epoch + self.more})


def test_a_full_disk_leaves_the_best_checkpoint(tmp_path, full_disk):
    options = dict(save_best='acc', rule='greater', filename_tmpl='e{}.pth')
    changes = dict(hooks(**options), custom_hooks=[dict(type='FakeScore')])
    run(config(tmp_path / 'whole', epochs=2, **changes))
    assert names(tmp_path / 'whole')[0] == 'best_acc_e1.pth'
    # Of an epoch: its own file, the best one, its own with the new score.
    full_disk(at=5)
    with pytest.raises(CheckpointWriteError, match='best checkpoint in'):
        run(config(tmp_path / 'full', epochs=2, **changes))
    assert names(tmp_path / 'full')[0] == 'best_acc_e0.pth'
    load_checkpoint_file(tmp_path / 'full' / 'best_acc_e0.pth')


def test_a_best_checkpoint_that_is_written_again_stays(tmp_path):
    options = dict(save_best='acc', rule='greater')
    again = [dict(type='FakeScore'), dict(type='FakeScore', more=1)]
    run(config(tmp_path, epochs=1, **hooks(**options), custom_hooks=again))
    assert names(tmp_path)[0] == 'best_acc_epoch_0.pth'


def test_a_limit_of_the_system_leaves_the_old_file(tmp_path):
    path = tmp_path / 'x.pth'
    write_whole(path, b'old')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match='too large'):
            write_whole(path, b'new' * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b'old'
    assert names(tmp_path) == ['x.pth']


def test_leftovers_of_killed_runs_go_and_nothing_else(tmp_path):
    for name in ('epoch_9.pth.12.tmp', 'last_checkpoint.12.tmp', 'my.tmp'):
        (tmp_path / name).write_bytes(b'half')
    run(config(tmp_path, epochs=1, **hooks()))
    assert names(tmp_path) == [
        'epoch_1.pth',
        'last_checkpoint',
        'latest.pth',
        'my.tmp',
    ]
    assert remove_temporary(tmp_path) == []


def test_what_a_kill_kept_from_removal_goes_at_the_next_start(
    tmp_path, monkeypatch
):
    def killed(self) -> None:
        if self.last_ckpt.endswith('epoch_2.pth'):
            raise KeyboardInterrupt

    name = 'mmprune.hooks.checkpoint_hook.SafeCheckpointHook._remove_stale'
    with monkeypatch.context() as patch:
        patch.setattr(name, killed)
        with pytest.raises(KeyboardInterrupt):
            run(config(tmp_path, **hooks(max_keep_ckpts=1)))
    assert names(tmp_path)[:2] == ['epoch_1.pth', 'epoch_2.pth']
    run(config(tmp_path, resume=True, **hooks(max_keep_ckpts=1)))
    assert names(tmp_path)[0] == 'epoch_4.pth'


def test_latest_is_a_copy_where_links_are_impossible(tmp_path, monkeypatch):
    def refuse(*args) -> None:
        raise OSError(errno.EPERM, 'no links here')

    monkeypatch.setattr(Path, 'symlink_to', refuse)
    (tmp_path / 'epoch_1.pth').write_bytes(b'one')
    point_to(tmp_path / 'latest.pth', tmp_path / 'epoch_1.pth')
    assert not (tmp_path / 'latest.pth').is_symlink()
    assert (tmp_path / 'latest.pth').read_bytes() == b'one'
    assert len(names(tmp_path)) == 2


def test_an_explicit_backend_is_served_as_mmengine_does(tmp_path):
    run(
        config(tmp_path, epochs=1, **hooks(backend_args=dict(backend='local')))
    )
    assert names(tmp_path) == ['epoch_1.pth', 'last_checkpoint']
