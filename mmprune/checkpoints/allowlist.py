"""What the pickle inside a checkpoint may name, and nothing else.

``torch.load(weights_only=True)`` calls only what stands in its list. To that
list come the harmless types that mmengine and numpy write. Where the real
object could do more than a checkpoint needs (``getattr``, numpy's dtypes with
object fields), a narrower stand-in takes its name.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pickle import UnpicklingError
from typing import Any

import numpy as np

_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
# Functions that mmengine pickles as ``getattr(class, name)``.
_METHODS = {
    _HISTORY: ('min', 'max', 'current', 'mean'),
    _ONE_CYCLE: ('_annealing_cos', '_annealing_linear'),
}
_PLAIN_DTYPE = re.compile(r'[biufcSUMm]\d+')


class PlainDtype:
    """A numpy dtype without fields and without objects.

    numpy's own ``dtype.__setstate__`` takes fields and flags from the file
    and trusts them; this one takes the byte order and the time unit.
    """

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
            raise refuse(f'numpy.dtype({code!r})')
        self.code = code
        self.order = '='

    def __setstate__(self, state: tuple) -> None:
        _, order, subdtype, names, fields = state[:5]
        if (subdtype, names, fields) != (None, None, None):
            raise refuse(f'numpy.dtype({self.code!r}) with fields')
        self.order = order if order in ('<', '>', '=') else '='
        # datetime64 and timedelta64 carry (metadata, (unit, count, ...)).
        if self.code[0] in 'Mm' and len(state) > 8:
            unit, count = state[8][1][:2]
            if isinstance(unit, bytes):
                unit = unit.decode()
            self.code += f'[{int(count)}{unit}]'

    def resolve(self) -> np.dtype:
        """Returns the dtype itself."""
        return np.dtype(self.code).newbyteorder(self.order)


class LoadedArray(np.ndarray):
    """An array from a checkpoint; it is saved again as a plain one."""

    def __new__(cls, *args) -> 'LoadedArray':
        raise refuse('numpy.ndarray(...)')

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        super().__setstate__((1, shape, dtype.resolve(), fortran, data))

    def __reduce_ex__(self, protocol: int) -> tuple:
        return np.asarray(self).__reduce_ex__(protocol)

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return array[()] if array.ndim == 0 else np.asarray(array)


def refuse(name: str) -> UnpicklingError:
    """Returns the error for a global that a checkpoint may not use."""
    return UnpicklingError(f'Unsupported global: GLOBAL {name} was refused')


@contextmanager
def active() -> Iterator[None]:
    """Lets ``torch.load(weights_only=True)`` read what is allowed here."""
    from mmengine.logging import HistoryBuffer
    from torch.serialization import safe_globals

    HistoryBuffer()  # fills the table of its statistics
    methods = dict(HistoryBuffer._statistics_methods)
    try:
        with safe_globals(_allowed_globals()):
            yield
    finally:
        # HistoryBuffer.__setstate__ writes into this table of the class.
        HistoryBuffer._statistics_methods.clear()
        HistoryBuffer._statistics_methods.update(methods)


def explain(name: str, error: Exception) -> str:
    """Returns one sentence: why the checkpoint ``name`` was not read."""
    text = str(error)
    refused = re.search(r'GLOBAL (\S+)', text)
    if refused:
        return (
            f'{name} was refused: its pickle wants {refused[1]!r}, which is '
            'outside the allow-list and could run code; if you trust its '
            'author, --trust-checkpoint loads it anyway'
        )
    if 'out of memory' in text or isinstance(error, MemoryError):
        return f'{name} does not fit into memory: {_first(error)}'
    if 'deserialize object on' in text or 'CUDA' in text:
        return f'{name} cannot be put on the asked device: {_first(error)}'
    if 'Unsupported operand' in text or 'unrecognized function' in text:
        return (
            f'{name} was refused: its pickle does more than hold weights; if '
            'you trust its author, --trust-checkpoint loads it anyway'
        )
    return f'{name} is truncated or not a checkpoint; copy it again'


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _allowed_globals() -> list[tuple[Any, str]]:
    """Returns (object, name in the pickle) of everything allowed."""
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    allowed = [
        (HistoryBuffer, _HISTORY),
        (ConfigDict, 'mmengine.config.config.ConfigDict'),
        # Only a name: the class itself is not callable from a checkpoint.
        (_ONE_CYCLE, _ONE_CYCLE),
        (_method, 'builtins.getattr'),
        (_empty_bytes, 'builtins.bytes'),
        (frozenset, 'builtins.frozenset'),
        (slice, 'builtins.slice'),
        (PlainDtype, 'numpy.dtype'),
        (LoadedArray, 'mmprune.allowlist.LoadedArray'),
        (_Ndarray, 'numpy.ndarray'),
    ]
    # numpy 2 moved `core` to `_core`; files of both are about.
    for core in ('numpy.core', 'numpy._core'):
        allowed.append((_reconstruct, f'{core}.multiarray._reconstruct'))
        allowed.append((_scalar, f'{core}.multiarray.scalar'))
    return allowed


class _Ndarray:
    """The name ``numpy.ndarray``, as the argument of ``_reconstruct``."""


def _reconstruct(subtype: type, shape: tuple, code: bytes) -> LoadedArray:
    if subtype is not _Ndarray:
        raise refuse('numpy._reconstruct of a subclass of ndarray')
    return np.ndarray.__new__(LoadedArray, (0,), 'b')


def _scalar(dtype: PlainDtype, data: bytes | str = b'') -> np.generic:
    if not isinstance(dtype, PlainDtype):
        raise refuse('numpy.scalar of an object')
    if isinstance(data, str):
        # Protocol 2 files that Python 2 wrote, or that were read as latin1.
        data = data.encode('latin1')
    resolved = dtype.resolve()
    if resolved.itemsize == 0:
        return np.zeros((), resolved)[()]
    return np.frombuffer(data, resolved, count=1)[0]


def _empty_bytes() -> bytes:
    # How protocol 2 writes b'', the data of an empty array.
    return b''


def _method(owner: Any, name: str) -> Any:
    path = owner if isinstance(owner, str) else _qualified(owner)
    if name not in _METHODS.get(path, ()):
        raise refuse(f'{path}.{name}')
    module, _, cls = path.rpartition('.')
    return getattr(getattr(import_module(module), cls), name)


def _qualified(owner: Any) -> str:
    module = getattr(owner, '__module__', type(owner).__module__)
    return f'{module}.{getattr(owner, "__qualname__", type(owner).__name__)}'
