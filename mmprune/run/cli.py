"""What the command-line tools share: errors, configs, progress."""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config


def fail_in_one_sentence(main: Callable) -> Callable:
    """Makes what a user caused one sentence on stderr and exit code 2.

    With ``MMPRUNE_TRACEBACK=1`` in the environment the traceback shows.
    """

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except (ValueError, KeyError, OSError) as error:
            if os.environ.get('MMPRUNE_TRACEBACK'):
                raise
            # KeyError is what mmengine's registries raise; its text is
            # quoted.
            text = error.args[0] if isinstance(error, KeyError) else error
            message = ' '.join(str(text).split())
            print(f'error: {message}', file=sys.stderr)
            sys.exit(2)

    return run


class _Terminated(BaseException):
    """SIGTERM arrived, as Slurm sends it before it takes a machine away."""


@contextlib.contextmanager
def stoppable(hint: Callable[[], str]) -> Iterator[None]:
    """Makes SIGTERM and Ctrl-C one sentence on stderr.

    The exit codes are those of a shell: 143 and 130.

    Args:
        hint: Called when it happens: what is safe and how to go on.
    """

    received = []

    def stop(number: int, _: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else _Terminated

    before = {}
    # Only the main thread may set handlers.
    if threading.current_thread() is threading.main_thread():
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, stop)
        # Not where a shell has it ignored, as for a background job.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except BaseException as error:
        # Libraries with a bare `except:` raise something else instead.
        if not received and not isinstance(error, KeyboardInterrupt):
            raise
        terminated = signal.SIGTERM in received
        name, code = ('SIGTERM', 143) if terminated else ('Ctrl-C', 130)
        print(f'stopped by {name}: {hint()}', file=sys.stderr)
        sys.exit(code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def load_config(path: str, options: Sequence[str] = ()) -> 'Config':
    """Returns the config of a file with ``KEY=VALUE`` options merged in.

    Raises:
        ValueError: If the file is missing, is no config or has no model.
    """
    # A second that --help does without.
    from mmengine.config import Config

    try:
        cfg = Config.fromfile(path)
    except FileNotFoundError as error:
        raise ValueError(f'no config at {path} ({error})') from error
    except OSError as error:
        raise ValueError(f'{path} is no mmengine config: {error}') from error
    except (SyntaxError, ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f'{path} cannot be read as an mmengine config: '
            f'{type(error).__name__}: {error}'
        ) from error
    merge_options(cfg, options)
    if 'model' not in cfg:
        raise ValueError(f'{path} has no `model`; give the config of a model')
    return cfg


def merge_options(cfg: 'Config', options: Sequence[str] | None) -> None:
    """Merges ``KEY=VALUE`` options into a config, in place.

    Raises:
        ValueError: If one is no such pair or does not fit the config.
    """
    if not options:
        return
    try:
        cfg.merge_from_dict(_parse(options))
    except TypeError as error:
        raise ValueError(
            f'--cfg-options do not fit the config: {error}'
        ) from error


def _parse(options: Sequence[str]) -> dict:
    from mmengine.config import DictAction

    parsed = {}
    for option in options:
        key, equals, value = option.partition('=')
        if not equals:
            raise ValueError(
                f'--cfg-options takes KEY=VALUE, found {option!r}'
            )
        parsed[key] = DictAction._parse_iterable(value)
    return parsed


class ProgressBar:
    """A progress bar over named steps; plain lines where no terminal is.

    Args:
        total: Number of steps.
    """

    def __init__(self, total: int) -> None:
        from rich.console import Console

        self.total = total
        self.number = 0
        console = Console(stderr=True)
        self._bar = _bar(console) if console.is_terminal else None

    def __enter__(self) -> 'ProgressBar':
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task('', total=self.total)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, name: str) -> None:
        """Begins a step."""
        self.number = min(self.number + 1, self.total)
        if self._bar is None:
            line = f'[{self.number}/{self.total}] {name}'
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.update(
                self._task, completed=self.number - 1, description=name
            )


def _bar(console: Any) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn('{task.description}'),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
