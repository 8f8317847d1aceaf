"""How far a command is and what remains, on a terminal and in a log."""

import contextlib
import datetime
import sys
import time
from typing import Any

# Seconds between two lines of one stage where no terminal is.
_PATIENCE = 60


class ProgressBar:
    """A progress bar; plain lines where no terminal is.

    Args:
        total: Number of steps.
        timed: Whether there are many steps that take the same time: it is
            said what remains, and lines come once a minute.
    """

    def __init__(self, total: int, timed: bool = False) -> None:
        self.total, self.timed = total, timed
        self.number, self._first = 0, 0
        self._start = self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> 'ProgressBar':
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = _bar(console, self.timed)
            self._bar.start()
            self._task = self._bar.add_task('', total=self.total)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, name: str) -> None:
        """Begins a step."""
        self.number = min(self.number + 1, self.total)
        self._show(name, self.number - 1, ends=self.number == 1)

    def reach(self, number: int, text: str) -> None:
        """Says that so many steps are done.

        Args:
            number: Of the steps that are done; those of the first call were
                done before the bar began.
            text: What is being done.
        """
        if not self.number:
            self._first = max(0, number - 1)
        self.number = number
        self._show(text, number)

    @contextlib.contextmanager
    def paused(self) -> Any:
        """Makes room for another bar."""
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()

    def _show(self, text: str, done: int, ends: bool = False) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
            return
        ends = ends or self.number >= self.total
        now = time.monotonic()
        if self.timed and not ends and now - self._said < _PATIENCE:
            return
        self._said = now
        new = done - self._first
        if self.timed and new > 0 and done < self.total:
            left = (self._said - self._start) / new * (self.total - done)
            text += f', {datetime.timedelta(seconds=round(left))} left'
        line = f'[{self.number}/{self.total}] {text}'
        print(line, file=sys.stderr, flush=True)


def _bar(console: Any, timed: bool) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn('{task.description}'),
        TimeElapsedColumn(),
    ]
    if timed:
        columns += [TextColumn('left'), TimeRemainingColumn()]
    return Progress(*columns, console=console, transient=True)
