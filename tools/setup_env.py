"""Makes or mends ``.venv``, the environment that all make targets share.

Only the standard library, and no syntax newer than Python 3.6: an
interpreter that is too old for mmprune must still be able to say so.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST, NEWEST = (3, 10), (3, 12)
FRESH_GB = 13  # 7.3 GB stay; the rest are wheels on their way in
OPENCV = 'opencv-python-headless'


class SetupError(Exception):
    """A reason to stop, in one sentence that says what to do."""


def say(text: str) -> None:
    """Prints one stage of the set-up at once, also into a pipe."""
    print(f'set-up: {text}', flush=True)


def run_command(command: list) -> tuple:
    """Runs a command and returns its exit status and all that it printed.

    The child inherits the lock of `locked`, so that a pip that outlives a
    killed set-up still keeps the next one waiting.
    """
    env = dict(os.environ, PIP_USER='0', PIP_DISABLE_PIP_VERSION_CHECK='1')
    for name in ('PYTHONPATH', 'PYTHONHOME', '__PYVENV_LAUNCHER__'):
        env.pop(name, None)
    try:
        done = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            close_fds=False,
        )
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout.decode(errors='replace')


def is_supported(version: tuple) -> bool:
    """Tells whether mmprune runs on a Python ``(major, minor, ...)``."""
    return OLDEST <= tuple(version[:2]) <= NEWEST


def python_version(python: str, run=run_command) -> tuple:
    """Returns ``(major, minor)``, or ``()`` if it cannot make environments.

    It is run rather than trusted by its name: shims answer to any name, and
    Debian ships a Python without ensurepip.
    """
    code = 'import ensurepip, sys, venv; print(*sys.version_info[:2])'
    status, output = run([python, '-c', code])
    if status != 0:
        return ()
    return tuple(int(part) for part in output.split()[-2:])


def choose_python(folder: Path, exact: bool, run=run_command) -> str:
    """Returns a supported interpreter, this one first.

    Args:
        folder: The environment; interpreters inside it are not asked.
        exact: Ask no interpreter but this one.
        run: Runs a command, see `run_command`.

    Raises:
        SetupError: if none is found.
    """
    # In an active environment, the interpreter that it was made with.
    own = getattr(sys, '_base_executable', None) or sys.executable
    names = [] if exact else ['python3.12', 'python3.11', 'python3.10']
    for python in [own] + [shutil.which(name) for name in names]:
        if python is None or folder in Path(python).parents:
            continue
        if is_supported(python_version(python, run)):
            if python != own:
                say(f'{own} is not fit, using {python}')
            return python
    found = '.'.join(str(part) for part in sys.version_info[:3])
    raise SetupError(
        'mmprune needs Python 3.10, 3.11 or 3.12 with its venv module (a '
        f'package of its own on Debian: python3-venv), found {found} at '
        f'{own}{"" if exact else " and no fit one on PATH"}; install one or '
        'name it, as in: make test PYTHON=/path/to/python3.12'
    )


def check_disk(folder: Path, needed_gb: float) -> None:
    """Raises SetupError if the disk of a folder has too little room."""
    free_gb = shutil.disk_usage(str(folder)).free / 1e9
    if free_gb < needed_gb:
        raise SetupError(
            f'the environment needs {needed_gb:.0f} GB of free disk while it '
            f'is made, {folder} has {free_gb:.1f} GB; free some, or move the '
            'project to a larger disk'
        )


@contextlib.contextmanager
def locked(path: Path):
    """Holds a lock on an existing file; waits while another call has it."""
    with open(str(path), 'ab') as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('another set-up of this project is running, waiting for it')
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Environment:
    """The folder ``.venv`` of a project and what is known about it.

    ``mmprune-stamp`` is written last of all and holds the fingerprint of
    what was installed; ``mmprune-unfinished`` is there while anything is
    being installed. pip takes a package that it was stopped in the middle
    of for a whole one, so an environment with that mark is not mended.
    """

    def __init__(self, root: Path, run=run_command) -> None:
        self.root, self.run = root, run
        self.folder = root / '.venv'
        self.python = self.folder / 'bin' / 'python'
        self.stamp = self.folder / 'mmprune-stamp'
        self.unfinished = self.folder / 'mmprune-unfinished'
        self.scratch = self.folder / 'tmp'
        self.lock = root / 'requirements.lock'

    def version(self) -> tuple:
        """Returns the environment's Python version, ``()`` if unknown."""
        with contextlib.suppress(OSError):
            text = (self.folder / 'pyvenv.cfg').read_text()
            found = re.search(r'^version = (\d+)\.(\d+)', text, re.M)
            if found and self.python.exists():
                return tuple(int(part) for part in found.groups())
        return ()

    def fingerprint(self) -> str:
        """Returns a hash of all that the installed packages follow from."""
        digest = hashlib.sha256(f'{self.root} {self.version()}'.encode())
        for path in (self.lock, self.root / 'setup.py'):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def is_wanted(self, exact: bool) -> bool:
        """Tells whether its Python is a supported one, or this very one."""
        if exact:
            return self.version() == tuple(sys.version_info[:2])
        return is_supported(self.version())

    def is_ready(self, exact: bool = False) -> bool:
        """Tells whether nothing is to be done; looks at a few files only."""
        torch = 'lib/python*/site-packages/torch/__init__.py'
        return (
            self.stamp.is_file()
            and self.is_wanted(exact)
            and any(self.folder.glob(torch))
            and self.stamp.read_text() == self.fingerprint()
        )

    def is_mendable(self, exact: bool = False) -> bool:
        """Tells whether installing into what is there can make it whole."""
        if self.unfinished.exists() or not self.is_wanted(exact):
            return False
        return self.run([self.python, '-m', 'pip', '--version'])[0] == 0

    def create(self, exact: bool = False) -> None:
        """Makes an empty environment, in place of the one that is there.

        Raises:
            SetupError: if there is no fit Python, too little disk, or
                something at ``.venv`` that is not ours to delete.
        """
        python = choose_python(self.folder, exact, self.run)
        self.clear()
        check_disk(self.folder, FRESH_GB)
        say(f'making .venv with {python}')
        self.do([python, '-m', 'venv', self.folder])

    def clear(self) -> None:
        """Empties the folder, all but the mark that it is unfinished."""
        inside = list(self.folder.iterdir()) if self.folder.is_dir() else []
        ours = [self.folder / 'pyvenv.cfg', self.unfinished]
        if inside and not any(item in inside for item in ours):
            raise SetupError(
                f'{self.folder} exists and is no virtual environment of this '
                'project; move it away'
            )
        if inside:
            say('removing the old or unfinished .venv')
        self.folder.mkdir(exist_ok=True)
        self.unfinished.touch()
        for item in inside:
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(str(item))
            elif item != self.unfinished:
                item.unlink()

    def install(self) -> None:
        """Installs the pins and the project itself, in editable mode.

        Raises:
            SetupError: if pip fails.
        """
        self.unfinished.touch()
        with contextlib.suppress(FileNotFoundError):
            self.stamp.unlink()
        # pip unpacks beside the environment: /tmp may be small, and this is
        # the disk whose room was checked.
        self.scratch.mkdir(exist_ok=True)
        pip = ['env', f'TMPDIR={self.scratch}', self.python]
        pip += ['-m', 'pip', 'install', '--no-input']
        pins = self.lock.read_text()
        say('installing the pinned packages, minutes if they must be loaded')
        self.do(pip + ['--only-binary=:all:', '-r', self.lock])
        # The two OpenCV distributions write the same files. The headless one
        # must come last: the other one needs libGL, which servers lack.
        for pin in re.findall(rf'^{OPENCV}==\S+', pins, re.M):
            self.do(pip + ['--no-deps', '--force-reinstall', pin])
        say('installing mmprune in editable mode')
        here = ['--no-deps', '--no-build-isolation', '-e', self.root]
        self.do(pip + here)

    def complaint(self) -> str:
        """Returns what fails when the main packages are imported, or ''."""
        code = (
            'import importlib.util, cv2, mmengine, torch, torchvision\n'
            'assert importlib.util.find_spec("mmprune"), "no mmprune"'
        )
        status, output = self.run([self.python, '-c', code])
        return '' if status == 0 else output.strip()[-2000:] or 'no output'

    def finish(self) -> None:
        """Writes down that, and what, the environment holds."""
        shutil.rmtree(str(self.scratch), ignore_errors=True)
        self.unfinished.unlink()
        half = self.stamp.with_suffix('.new')
        half.write_text(self.fingerprint())
        half.replace(self.stamp)

    def do(self, command: list) -> None:
        """Runs one step of the set-up; raises SetupError if it fails."""
        status, output = self.run(command)
        if status == 0:
            return
        print('\n'.join(output.splitlines()[-15:]), file=sys.stderr)
        check_disk(self.folder, 0.5)
        words = ' '.join(str(word) for word in command)
        raise SetupError(
            f'`{words}` ended with status {status}, its last lines are '
            'above; put the cause right and call make again'
        )


def set_up(root: Path, exact: bool = False, run=run_command) -> None:
    """Brings ``.venv`` up to date, mended if possible and else made anew.

    Args:
        root: The project's folder.
        exact: Insist on the interpreter that runs this script.
        run: Runs a command, see `run_command`.

    Raises:
        SetupError: with the reason, if that is not possible.
    """
    env = Environment(root, run)
    if env.is_ready(exact):
        return
    start = time.time()
    with locked(env.lock):
        if env.is_ready(exact):
            return
        for fresh in [False, True] if env.is_mendable(exact) else [True]:
            if fresh:
                env.create(exact)
            env.install()
            complaint = env.complaint()
            if not complaint:
                env.finish()
                say(f'.venv is ready after {time.time() - start:.0f} s')
                return
        raise SetupError(
            'the packages were installed but cannot be imported; the cause '
            f'is in these lines:\n{complaint}'
        )


def main() -> int:
    """Runs the set-up and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--exact',
        action='store_true',
        help='insist on the Python that runs this (default: off)',
    )
    exact = parser.parse_args().exact
    # As an exception it ends the running pip too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        set_up(ROOT, exact)
    except (SetupError, OSError) as error:
        print(f'set-up: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('set-up: interrupted, the next call starts anew')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
