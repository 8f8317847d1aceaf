"""Checkpoints that a crash or a full disk cannot destroy."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ..atomic_file import point_to, remove_temporary, write_whole
from ..models.sharded import FullyShardedModel, gathered_state, split_state
from ..registry import HOOKS
from .gradual_pruning_hook import pruning_goes_on

BACKEND = 'mmprune_atomic'
_STALE = 'stale_ckpts'


class CheckpointWriteError(OSError):
    """A checkpoint that could not be written; says what is left."""


@register_backend(BACKEND, force=True)
class AtomicBackend(LocalBackend):
    """mmengine's local files, written whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes bytes with :func:`write_whole`."""
        write_whole(filepath, obj)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, which never loses the last good file.

    Every file is written beside and renamed; an old checkpoint goes only
    after the new one is on disk; ``latest.pth`` leads to the newest one and
    ``last_checkpoint`` names it, for ``resume=True``. Half-written files of
    killed runs are removed at the start of training. A folder that is not
    local, or an explicit ``backend_args``, is served as mmengine does. Where a
    :class:`GradualPruningHook` prunes, ``save_best`` chooses among the models
    that are pruned in full. A ``mmprune.FullyShardedModel`` is put together
    before it is written.

    Takes the arguments of ``CheckpointHook``.
    """

    def before_train(self, runner: Runner) -> None:
        """Prepares the folder of the checkpoints.

        Raises:
            OSError: If the folder cannot be cleaned up.
        """
        self._local = (
            self.backend_args in (None, dict(backend=BACKEND))
            and self.file_client_args is None
            and '://' not in str(self.out_dir or runner.work_dir)
        )
        if self._local:
            self.backend_args = dict(backend=BACKEND)
        super().before_train(runner)
        if not self._local:
            return
        self._stale: list[str] = []
        # While a checkpoint is written, nothing is removed.
        self.file_backend.remove = lambda path: self._put_off(runner, path)
        if is_main_process():
            for folder in {self.out_dir, runner.work_dir}:
                remove_temporary(folder)
            # A kill between the write of a checkpoint and the removal of the
            # old one leaves the old one, which the new one knows.
            self._remove(runner.message_hub.runtime_info.get(_STALE, ()))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Splits the optimizer's state over the ranks of a sharded model."""
        saved = checkpoint.get('optimizer')
        if saved and isinstance(runner.model, FullyShardedModel):
            optimizer = runner.optim_wrapper.optimizer
            saved['state'] = split_state(saved['state'], optimizer)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Writes whole tensors where the ranks hold parts of them.

        Raises:
            ValueError: If it was not gathered.
        """
        if not isinstance(runner.model, FullyShardedModel):
            return
        if self._whole is None:
            raise ValueError(
                'a FullyShardedModel is put together by SafeCheckpointHook '
                'alone; leave other checkpoint hooks out'
            )
        weights, state = self._whole
        checkpoint['state_dict'].update(weights)
        if 'optimizer' in checkpoint:
            checkpoint['optimizer']['state'] = state

    _whole: tuple[dict, dict] | None = None

    @contextmanager
    def _put_together(self, runner: Runner) -> Iterator[None]:
        """Gathers a sharded model and its optimizer; all ranks come here."""
        if not isinstance(runner.model, FullyShardedModel):
            yield
            return
        state = {}
        if self.save_optimizer:
            state = gathered_state(runner.optim_wrapper.optimizer)
        self._whole = runner.model.gathered(), state
        try:
            yield
        finally:
            self._whole = None

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict
    ) -> None:
        with self._put_together(runner):
            self._save_step(runner, step, meta)

    def _save_step(self, runner: Runner, step: int, meta: dict) -> None:
        if not self._local:
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        runner.message_hub.update_info(_STALE, list(self._stale))
        before = self.last_ckpt
        self._turn_over(runner, step)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = os.path.join(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                self._announce(runner.work_dir)
        except OSError as error:
            raise _unwritten(self.last_ckpt, before, error) from error
        self._remove_stale()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if pruning_goes_on(runner):
            return
        try:
            with self._put_together(runner):
                super()._save_best_checkpoint(runner, metrics)
        except CheckpointWriteError:
            raise
        except OSError as error:
            if not self._local:
                raise
            best = f'the best checkpoint in {self.out_dir}'
            raise _unwritten(best, self.last_ckpt, error) from error
        if self._local:
            self._remove_stale()

    def _turn_over(self, runner: Runner, step: int) -> None:
        """Puts off the removal of the checkpoint that ``step`` replaces."""
        if self.max_keep_ckpts <= 0 or step in self.keep_ckpt_ids:
            return
        steps = [*self.keep_ckpt_ids, step]
        for old in steps[: -self.max_keep_ckpts]:
            name = self.filename_tmpl.format(old)
            self._put_off(runner, os.path.join(self.out_dir, name))
        self.keep_ckpt_ids = deque(steps, self.max_keep_ckpts)
        runner.message_hub.update_info(
            'keep_ckpt_ids', list(self.keep_ckpt_ids)
        )

    def _put_off(self, runner: Runner, path: str) -> None:
        # By name: a run folder may be copied and resumed elsewhere.
        self._stale.append(Path(path).name)
        runner.message_hub.update_info(_STALE, list(self._stale))

    def _remove_stale(self) -> None:
        stale, self._stale = self._stale, []
        if is_main_process():
            self._remove(stale)

    def _remove(self, names: Iterable[str]) -> None:
        """Removes checkpoints by name, but none that is in use again."""
        best = [getattr(self, 'best_ckpt_path', None)]
        best += getattr(self, 'best_ckpt_path_dict', {}).values()
        used = {Path(p).name for p in (*best, self.last_ckpt) if p}
        if self.max_keep_ckpts > 0:
            used |= {self.filename_tmpl.format(i) for i in self.keep_ckpt_ids}
        for name in {Path(name).name for name in names} - used:
            (Path(self.out_dir) / name).unlink(missing_ok=True)

    def _announce(self, work_dir: str) -> None:
        """Makes the last checkpoint the one that is found first."""
        latest = Path(self.out_dir) / 'latest.pth'
        if latest.name != Path(self.last_ckpt).name:
            point_to(latest, self.last_ckpt)
        write_whole(
            Path(work_dir) / 'last_checkpoint', self.last_ckpt.encode()
        )


def _unwritten(
    path: str, before: str | None, error: OSError
) -> CheckpointWriteError:
    text = f'{path} could not be written ({error.strerror or error})'
    if before:
        text += f'; {before} is unharmed, make room and resume from it'
    new = CheckpointWriteError(text)
    new.errno = error.errno
    return new
