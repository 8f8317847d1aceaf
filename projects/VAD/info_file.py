"""Reads info files without running what they carry."""

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


def load_info_file(path: str | Path, temporal: bool = False) -> dict:
    """Reads one annotation file of the mmdet3d 1.x layout.

    A pickle is a program, so this reader admits only plain containers,
    numbers, strings and numpy arrays. It looks at every name before the
    name is resolved: a file that asks for anything else is refused and
    nothing of it has run.

    Args:
        path: A ``.pkl`` file holding
            ``{'metainfo': {...}, 'data_list': [...]}``.
        temporal: Whether to take VAD's temporal info files as well:
            ``{'infos': [...], 'metadata': {...}}``.

    Returns:
        The file's dictionary.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a pickle, is cut short, needs a name
            that is not admitted, or has another layout.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f'info file {path} does not exist; pass the path of an mmdet3d '
            'info file (*.pkl).'
        )
    try:
        content = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except _RefusedError as error:
        raise ValueError(f'info file {path}: {error}') from error
    except Exception as error:
        # A damaged pickle fails with whatever its broken opcode meets.
        raise ValueError(
            f'info file {path} is not a whole pickle '
            f'({type(error).__name__}: {error}); make or copy it again.'
        ) from error
    return _checked_layout(path, content, temporal)


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
            'arrays are admitted, so nothing was loaded; write the file '
            'again with lists, dicts, numbers and arrays.'
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


def _checked_layout(path: Path, content: Any, temporal: bool) -> dict:
    """Returns the content if it has a layout that is asked for."""
    if not isinstance(content, dict):
        found = f'a {type(content).__name__}'
    elif _has(content, infos=list, metadata=dict):
        if temporal:
            return content
        found = "the mmdet3d 0.x layout (key 'infos')"
    elif _has(content, data_list=list, metainfo=dict):
        return content
    else:
        found = f'the keys {sorted(map(str, content))}'
    also = " or that of VAD with 'infos' and 'metadata'" if temporal else ''
    advice = (
        "make the file again with this project's tools/create_data.py."
        if temporal
        else "convert it with mmdet3d's "
        'tools/dataset_converters/update_infos_to_v2.py, or read it with '
        'NuScenesVADDataset.'
    )
    raise ValueError(
        f'info file {path} holds {found}, expected the dict of mmdet3d 1.x '
        f"with 'metainfo' and 'data_list'{also}; {advice}"
    )


def _has(content: dict, **types: type) -> bool:
    return all(isinstance(content.get(k), t) for k, t in types.items())
