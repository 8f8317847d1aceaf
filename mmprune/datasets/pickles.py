"""Reads pickles that hold plain data and arrays, and nothing else."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

try:
    from numpy._core import multiarray
except ImportError:  # numpy < 1.26 has it under the old name only
    from numpy.core import multiarray

_ADMITTED = {
    ('numpy', 'dtype'): np.dtype,
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy.core.multiarray', '_reconstruct'): multiarray._reconstruct,
    ('numpy._core.multiarray', '_reconstruct'): multiarray._reconstruct,
}


class _Refused(pickle.UnpicklingError):
    """The file is whole, and asks for more than data."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        if (module, name) == ('_codecs', 'encode'):
            return _make_encode()
        raise _Refused(
            f'it wants {module}.{name}, which data does not need and which '
            'could run code; get the file from its original source'
        )

    def persistent_load(self, pid: Any) -> None:
        raise _Refused('it refers to objects outside of the file')


def _make_encode() -> Callable[[str, str], bytes]:
    # How protocol 2 writes bytes under Python 3. Not codecs.encode itself,
    # which imports what the file names; a fresh one, since BUILD may set
    # attributes on it.
    def encode(text: str, encoding: str) -> bytes:
        if encoding != 'latin1':
            raise _Refused(f'it stores bytes in the encoding {encoding!r}')
        return text.encode('latin1')

    return encode


def load_plain_pickle(path: str | Path) -> dict:
    """Returns the dict in a pickle, with string keys; runs none of its code.

    Args:
        path: A pickle of Python 2 or 3 with containers, numbers, strings
            and arrays.

    Raises:
        ValueError: If the file is damaged, no dict, or wants more.
    """
    data = Path(path).read_bytes()
    try:
        found = _PlainUnpickler(io.BytesIO(data), encoding='latin1').load()
    except _Refused as error:
        raise ValueError(f'{path} was refused: {error}') from error
    except Exception as error:
        # A damaged pickle fails with whatever its broken opcode meets.
        raise ValueError(
            f'{path} is not a whole pickle ({type(error).__name__}: '
            f'{error}); copy it again'
        ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f'{path} holds a {type(found).__name__}, a dict was expected'
        )
    return {
        k.decode('latin1') if isinstance(k, bytes) else k: v
        for k, v in found.items()
    }
