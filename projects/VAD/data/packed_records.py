"""Records of an info file in one block of bytes, read once in a process.

mmengine keeps records that way too: worker processes share the block, where
each would copy thousands of objects. What is added is that the block grows
while the file is read, so that the records never exist as objects all at
once, and that the data sets of a process share it: a command builds them
several times.
"""

import pickle
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from projects.VAD.data.scene_order import in_order

# Blocks that a process holds on to: of training, validation and test.
KEPT = 3


@dataclass(frozen=True)
class Records:
    """Packed records.

    Their order is that of the two index arrays alone: to move the bytes as
    well would need room for all of them twice.

    Attributes:
        data: Their pickles, ``[bytes]`` uint8.
        starts: Where each begins, ``[records]``.
        ends: Where each ends, ``[records]``.
        found: What is known about the file beyond them.
    """

    data: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    found: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> dict:
        """Unpacks a record; negative places count from the end."""
        start, end = self.starts[place], self.ends[place]
        return pickle.loads(memoryview(self.data[start:end]))

    def chosen(self, indices: int | Sequence[int] | None) -> 'Records':
        """Returns some of the records, which share the bytes of all.

        Args:
            indices: As for mmengine's ``BaseDataset``: the first ones, with a
                negative number the last ones, or these.
        """
        if indices is None:
            return self
        if isinstance(indices, int):
            every = range(len(self))
            indices = every[:indices] if indices >= 0 else every[indices:]
        places = np.array(indices, np.int64)
        starts, ends = self.starts[places], self.ends[places]
        return replace(self, starts=starts, ends=ends)


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
        data.flags.writeable = False
        ends = np.array(self._ends, np.int64)
        starts = np.concatenate(([0], ends[:-1])).astype(np.int64)
        records = Records(data, starts, ends, found)
        if not by_time:
            return records
        return records.chosen([m['place'] for m in in_order(self._marks)])


_MARKS = ('scene_token', 'timestamp')


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
