"""Reads pickles that hold plain data and arrays, nothing else."""

import gc
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

try:
    from numpy._core import multiarray, numeric
except ImportError:  # numpy < 1.26 has them under the old name only
    from numpy.core import multiarray, numeric

# What numpy's own pickles ask for, under the old name of its package.
_NUMPY_PARTS = {
    ('numpy', 'dtype'): np.dtype,
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy.core.multiarray', 'scalar'): multiarray.scalar,
    ('numpy.core.multiarray', '_reconstruct'): multiarray._reconstruct,
    ('numpy.core.numeric', '_frombuffer'): numeric._frombuffer,
}


def load_plain_pickle(path: str | Path, encoding: str = 'ASCII') -> Any:
    """Returns what a pickle of plain data holds.

    A pickle is a program, so this reader admits only plain containers,
    numbers, strings and numpy arrays. It looks at every name before the
    name is resolved: a file that asks for anything else is refused and
    nothing of it has run.

    Args:
        path: The file.
        encoding: Of the byte strings of Python 2, as in ``pickle.load``.

    Raises:
        ValueError: The file is no pickle, is cut short, or needs a name
            that is not admitted.
    """
    with open(path, 'rb') as file:
        return read_plain_pickle(file, path, encoding)


def read_plain_pickle(
    file: BinaryIO,
    path: str | Path,
    encoding: str = 'ASCII',
    admitted: Mapping[tuple[str, str], Any] | None = None,
) -> Any:
    """Returns what a pickle of plain data holds that is open already.

    Args:
        file: Has ``read``, ``readline`` and, to be fast, ``peek``.
        path: The name of the file, for messages.
        encoding: Of the byte strings of Python 2, as in ``pickle.load``.
        admitted: Further names, ``(module, name)`` -> what stands for it.

    Raises:
        ValueError: As :func:`load_plain_pickle`.
        OSError: The file cannot be read.
    """
    reader = _PlainUnpickler(file, encoding=encoding)
    reader.admitted = admitted or {}
    try:
        with _without_collection():
            return reader.load()
    except OSError:
        raise
    except _RefusedError as error:
        raise ValueError(f'{path}: {error}') from error
    except Exception as error:
        # A damaged pickle fails with whatever its broken opcode meets.
        raise ValueError(
            f'{path} is not a whole pickle ({type(error).__name__}: '
            f'{error}); make or copy it again.'
        ) from error


@contextmanager
def _without_collection() -> Iterator[None]:
    """Spares the search for cycles, which plain data do not have.

    It would look at all objects again and again while they become more: half
    of the time of a large file.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


class _RefusedError(pickle.UnpicklingError):
    """The file is whole, and asks for more than data."""


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler for containers, numbers, strings and numpy arrays."""

    admitted: Mapping[tuple[str, str], Any]

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) in self.admitted:
            return self.admitted[module, name]
        home = module.replace('numpy._core', 'numpy.core')
        if (home, name) in _NUMPY_PARTS:
            return _NUMPY_PARTS[home, name]
        if (module, name) == ('collections', 'OrderedDict'):
            return OrderedDict
        if (module, name) == ('_codecs', 'encode'):
            return _make_latin1_encode()
        raise _RefusedError(
            f'it needs {module}.{name}, and only plain containers and numpy '
            'arrays are admitted, so nothing was loaded; get the '
            'file from its source, or write it again with plain data.'
        )

    def persistent_load(self, pid: Any) -> None:
        raise _RefusedError(
            'it refers to objects outside of the file, so nothing was '
            'loaded; write the file again as a plain pickle.'
        )


def _make_latin1_encode() -> Callable[[str, str], bytes]:
    # Protocol 2 stores bytes as _codecs.encode(text, 'latin1'). The real
    # function would import any codec the file names. A fresh function per
    # request, because the BUILD opcode may set attributes on what it gets.
    def encode(text: str, encoding: str) -> bytes:
        if encoding != 'latin1':
            raise _RefusedError(
                f'it stores bytes in the encoding {encoding!r}, expected '
                "'latin1'; write the file again."
            )
        return text.encode('latin1')

    return encode
