"""Records of an info file in one block of bytes, read once in a process.

mmengine keeps records that way too: worker processes share the block, where
each would copy thousands of objects. What is added is that the block grows
while the file is read, so that the records never exist as objects all at
once, and that the data sets of a process share it: a command builds them
several times.
"""

import pickle
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from projects.VAD.data.scene_order import in_order

# Blocks that a process holds on to: of training, validation and test.
KEPT = 3


@dataclass(frozen=True)
class Records:
    """Packed records.

    Attributes:
        data: Their pickles, ``[bytes]`` uint8.
        ends: Where each ends, ``[records]``.
        found: What is known about the file beyond them.
    """

    data: np.ndarray
    ends: np.ndarray
    found: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ends)

    def chosen(self, indices: int | Sequence[int] | None) -> 'Records':
        """Returns some of the records.

        Args:
            indices: As for mmengine's ``BaseDataset``: the first ones, with a
                negative number the last ones, or these.
        """
        if indices is None:
            return self
        if isinstance(indices, int):
            every = range(len(self))
            indices = every[:indices] if indices >= 0 else every[indices:]
        return Records(*_gather(self.data, self.ends, indices), self.found)


class Packer:
    """Takes records one by one."""

    def __init__(self) -> None:
        self._data, self._ends, self._marks = bytearray(), [], []

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, record: dict) -> None:
        """Packs a record; it has ``scene_token`` and maybe ``timestamp``."""
        self._data += pickle.dumps(record, protocol=4)
        self._ends.append(len(self._data))
        mark = {key: record[key] for key in _MARKS if key in record}
        self._marks.append(mark | dict(place=len(self._marks)))

    def records(self, by_time: bool, found: dict[str, Any]) -> Records:
        """Returns what was packed; nothing can be added afterwards.

        Args:
            by_time: Whether scenes stay together and frames are in order.
            found: What is known about the file beyond the records.
        """
        data = np.frombuffer(self._data, np.uint8)
        ends = np.array(self._ends, np.int64)
        order = [mark['place'] for mark in in_order(self._marks)]
        if by_time and order != list(range(len(order))):
            data, ends = _gather(data, ends, order)
        data.flags.writeable = False
        return Records(data, ends, found)


_MARKS = ('scene_token', 'timestamp')


def _gather(
    data: np.ndarray, ends: np.ndarray, indices: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The records at some places, one behind the other."""
    starts = np.concatenate(([0], ends[:-1])).astype(np.int64)
    places = np.array(indices, np.int64)
    out = np.empty((ends - starts)[places].sum(), np.uint8)
    new = np.cumsum((ends - starts)[places])
    for place, end in zip(places, new, strict=True):
        size = ends[place] - starts[place]
        out[end - size : end] = data[starts[place] : ends[place]]
    return out, new


_kept: dict[Hashable, Records] = {}


def shared_records(
    path: str | Path, options: Hashable, read: Callable[[], Records]
) -> Records:
    """Returns the records of a file, read when they are first asked for.

    Args:
        path: The file; one that has changed is read again.
        options: On what the records depend beside the file.
        read: Reads them.
    """
    try:
        state = Path(path).stat()
    except OSError:
        return read()  # which says what is wrong with it
    version = state.st_ino, state.st_mtime_ns, state.st_size
    key = (str(path), version, options)
    records = _kept.pop(key, None)
    if records is None:
        records = read()
    _kept[key] = records
    while len(_kept) > KEPT:
        del _kept[next(iter(_kept))]
    return records
