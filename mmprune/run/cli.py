"""What the command-line tools share: errors, stops, progress."""

import contextlib
import functools
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import sentence
from ..memory import keep_freed
from .config_file import load_config, merge_options
from .progress import ProgressBar

__all__ = [
    'ProgressBar',
    'fail_in_one_sentence',
    'load_config',
    'merge_options',
    'stoppable',
]


def fail_in_one_sentence(main: Callable) -> Callable:
    """Makes what a user caused one sentence on stderr and exit code 2.

    What nobody foresaw is one sentence too, with exit code 1, and its
    traceback goes to a file. With ``--debug`` among the flags, or
    ``MMPRUNE_TRACEBACK=1`` in the environment, the traceback shows.
    """

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        words = sys.argv[1:] if not args or args[0] is None else args[0]
        debug = '--debug' in words or bool(os.environ.get('MMPRUNE_TRACEBACK'))
        # A log on a full disk is not worth a traceback.
        logging.raiseExceptions = debug
        keep_freed()
        _no_bars_in_logs()
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            print('stopped by Ctrl-C', file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            # Who read the output, as `head`, has seen enough; Python would
            # complain once more when it closes the pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except Exception as error:
            if debug:
                raise
            text = sentence(error)
            if not _is_the_users(error):
                text = (
                    f'{text}; this is a defect of mmprune, please report it '
                    f'with {_write_traceback(error)}, or see it by --debug'
                )
            print(f'error: {text}', file=sys.stderr)
            sys.exit(2 if _is_the_users(error) else 1)

    return run


def _no_bars_in_logs() -> None:
    """Leaves out the bars of transformers where no terminal shows them.

    One is drawn for every file that is loaded, over itself: in a log, lines
    of hundreds of characters.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault('HF_HUB_DISABLE_PROGRESS_BARS', '1')


def _is_the_users(error: Exception) -> bool:
    # Errors of code that is not ours are a UserError where it is called.
    if isinstance(error, KeyError):
        return ' ' in str(error)
    return isinstance(error, ValueError | OSError | ImportError | MemoryError)


def _write_traceback(error: Exception) -> str:
    with tempfile.NamedTemporaryFile(
        'w', prefix='mmprune_', suffix='.log', delete=False
    ) as file:
        file.write(f'$ {shlex.join(sys.argv)}\n')
        file.writelines(traceback.format_exception(error))
    return file.name


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
