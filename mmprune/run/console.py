"""A Runner as a command shows it: a bar, and a sentence when it fails.

What mmengine logs of itself (environment, config, hooks, every few
iterations) goes to the log file alone. Warnings, and what others log, show.
"""

import contextlib
import io
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmengine
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from ..errors import blame
from .progress import ProgressBar

_MMENGINE = str(Path(mmengine.__file__).parent)
# Warnings of mmengine about itself.
_NOISE = re.compile(
    'deprecated|is the alias of|prefix is not set|called more than once'
)
_SHOWN = 6


class ConsoleRunner(Runner):
    """A Runner that shows how far it is, and fails in one sentence.

    What fails in a run is the model, the data or the machine: the traceback
    goes to its log file.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Builds the logger; its terminal shows little."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.stream = _Stdout()
                handler.addFilter(_is_for_people)
        return logger

    def train(self) -> Any:
        """Trains; returns the model.

        Raises:
            ValueError: If it fails, with the config and what failed.
        """
        with self._shown('cannot be trained'):
            return super().train()

    def test(self) -> dict[str, float]:
        """Tests; returns the metrics.

        Raises:
            ValueError: If it fails, with the config and what failed.
        """
        with self._shown('cannot be tested'):
            return super().test()

    def load_or_resume(self) -> None:
        """Loads the checkpoint of the config, if it names one.

        Raises:
            ValueError: If that fails, with the checkpoint.
        """
        does = 'cannot be gone on from' if self._resume else 'cannot be loaded'
        said = io.StringIO()
        with (
            blame(f'{self._load_from} {does}'),
            contextlib.redirect_stdout(said),
        ):
            super().load_or_resume()
        for line in said.getvalue().splitlines():
            if not line.startswith('Loads checkpoint by'):
                print(line)

    @contextlib.contextmanager
    def _shown(self, what: str) -> Iterator[None]:
        progress = ProgressHook()
        self.register_hook(progress, 'LOWEST')
        try:
            with blame(f'{self.cfg.filename} {what}', self.cfg):
                yield
        except ValueError as error:
            record = self.logger.makeRecord(
                'mmengine', logging.ERROR, __file__, 0, str(error), (), None
            )
            record.exc_info = (type(error), error, error.__traceback__)
            for handler in self.logger.handlers:
                if isinstance(handler, logging.FileHandler):
                    handler.handle(record)
            raise
        finally:
            progress.bars.close()


class ProgressHook(Hook):
    """Shows how far a Runner is; the Runner registers it, no config does."""

    def __init__(self) -> None:
        self.bars = contextlib.ExitStack()
        self._training: ProgressBar | None = None
        self._other = contextlib.ExitStack()

    def before_train(self, runner: Runner) -> None:
        """Begins the bar of the training."""
        if is_main_process():
            self._training = self.bars.enter_context(
                ProgressBar(runner.max_iters, timed=True)
            )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Moves it."""
        if self._training is None:
            return
        text = 'training'
        if runner.max_epochs > 1:
            text += f', epoch {runner.epoch + 1} of {runner.max_epochs}'
        self._training.reach(runner.iter + 1, text)

    def after_train(self, runner: Runner) -> None:
        """Ends it."""
        self._training = None
        self.bars.close()

    def before_val_epoch(self, runner: Runner) -> None:
        """Begins the bar of a validation."""
        self._begin(len(runner.val_dataloader))

    def before_test_epoch(self, runner: Runner) -> None:
        """Begins the bar of a test."""
        self._begin(len(runner.test_dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, *_, **__) -> None:
        """Moves it."""
        self._move(batch_idx, 'validating')

    def after_test_iter(
        self, runner: Runner, batch_idx: int, *_, **__
    ) -> None:
        """Moves it."""
        self._move(batch_idx, 'testing')

    def after_val_epoch(self, runner: Runner, metrics=None) -> None:
        """Ends it, and shows the metrics that matter."""
        self._end(runner, f'validated, epoch {runner.epoch}', metrics or {})

    def after_test_epoch(self, runner: Runner, metrics=None) -> None:
        """Ends it, and shows the metrics that matter."""
        name = Path(runner.work_dir).name
        self._end(runner, f'tested {name}', metrics or {})

    def _begin(self, total: int) -> None:
        self._bar = None
        if is_main_process():
            self._other = self.bars.enter_context(contextlib.ExitStack())
            if self._training is not None:
                self._other.enter_context(self._training.paused())
            bar = ProgressBar(total, timed=True)
            self._bar = self._other.enter_context(bar)

    def _move(self, number: int, text: str) -> None:
        if self._bar is not None:
            self._bar.reach(number + 1, text)

    def _end(self, runner: Runner, what: str, metrics: dict) -> None:
        self._other.close()
        names = metrics_that_matter(
            [metrics], runner.cfg.get('summary_metrics') or ()
        )
        if is_main_process() and names:
            shown = ', '.join(f'{n} {metrics[n]:.4g}' for n in names)
            rest = len(metrics) - len(names)
            where = f' ({rest} more in {runner.log_dir})' if rest else ''
            print(f'{what}: {shown}{where}', flush=True)


def metrics_that_matter(
    metrics: Sequence[Mapping[str, Any]], wanted: Sequence[str] = ()
) -> list[str]:
    """Returns the names of a few metrics.

    Args:
        metrics: Of each model.
        wanted: Names, the first come first. Where none of them is there,
            those are taken that are not zero for all models.
    """
    named = [n for n in wanted if any(n in each for each in metrics)]
    numbers = (
        name
        for each in metrics
        for name, value in each.items()
        if isinstance(value, int | float) and value
    )
    return named or list(dict.fromkeys(numbers))[:_SHOWN]


class _Stdout:
    """The standard output of the moment, which a bar may have replaced."""

    def write(self, text: str) -> None:
        sys.stdout.write(text)

    def flush(self) -> None:
        sys.stdout.flush()


def _is_for_people(record: logging.LogRecord) -> bool:
    if not record.pathname.startswith(_MMENGINE):
        return True
    noise = _NOISE.search(record.getMessage())
    return record.levelno > logging.INFO and not noise
