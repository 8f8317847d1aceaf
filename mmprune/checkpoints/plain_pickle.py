"""Reads pickles that hold plain data and arrays, nothing else."""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    data = io.BytesIO(Path(path).read_bytes())
    try:
        return _PlainUnpickler(data, encoding=encoding).load()
    except _RefusedError as error:
        raise ValueError(f'{path}: {error}') from error
    except Exception as error:
        # A damaged pickle fails with whatever its broken opcode meets.
        raise ValueError(
            f'{path} is not a whole pickle ({type(error).__name__}: '
            f'{error}); make or copy it again.'
        ) from error


class _RefusedError(pickle.UnpicklingError):
    """The file is whole, and asks for more than data."""


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler for containers, numbers, strings and numpy arrays."""

    def find_class(self, module: str, name: str) -> Callable:
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
