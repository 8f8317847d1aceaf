"""Pickles of very many records, so that they can be read bit by bit.

Whoever reads a pickle holds all of it in the end: its list, and every object
that it numbers because a later one might refer to it. The 28,130 records of
nuScenes take gigabytes that way, although each is packed as soon as it is
there. Here the opcodes of the file are rewritten while they are read:

- an object that nothing refers to gets no number,
- the list of records becomes a name, ``RECORDS``, for which the reader puts
  an object of its own; it is handed the records in batches, by ``extend``.

What the file says is the same, and nothing of it is run here.
"""

import io
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from projects.VAD.compiled import compiled

# What stands for the list of records in a rewritten pickle.
RECORDS = ('mmprune', 'records')
# Bytes that are read at once; an opcode may be larger.
CHUNK = 1 << 20
LOW = 1 << 12

# Where the width of an opcode's argument is no number of bytes. -2, -3 and
# -4, and -5 mean that a number of 1, 4 or 8 bytes says it (pickletools).
LINE, TWO_LINES, UNKNOWN = -1, -9, -100
# What matters about an opcode.
PLAIN, NUMBERED, PUT, GET, FRAME, LIST, TEXT = range(7)
KIND_OF = dict(
    MEMOIZE=NUMBERED,
    BINPUT=PUT,
    LONG_BINPUT=PUT,
    BINGET=GET,
    LONG_BINGET=GET,
    FRAME=FRAME,
    EMPTY_LIST=LIST,
    SHORT_BINUNICODE=TEXT,
    BINUNICODE=TEXT,
)


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the argument of each opcode, and its kind."""
    widths = np.full(256, UNKNOWN, np.int16)
    kinds = np.full(256, PLAIN, np.int16)
    for opcode in pickletools.opcodes:
        width = 0 if opcode.arg is None else opcode.arg.n
        if opcode.name in ('GLOBAL', 'INST'):
            width = TWO_LINES
        # Protocol 0, which nobody writes large files in, numbers in decimals.
        if opcode.name not in ('GET', 'PUT'):
            widths[ord(opcode.code)] = width
        kinds[ord(opcode.code)] = KIND_OF.get(opcode.name, PLAIN)
    return widths, kinds


WIDTHS, KINDS = _tables()


@compiled
def _number(data, pos, count):
    """The little-endian number in so many bytes."""
    value = 0
    for i in range(count):
        value |= np.int64(data[pos + i]) << (8 * i)
    return value


@compiled
def _length(data, pos):
    """Bytes of the opcode at a place; 0 if not all are there, -1 if odd."""
    width = WIDTHS[data[pos]]
    end = pos + 1
    if width >= 0:
        end += width
    elif width == UNKNOWN:
        return -1
    elif width in (LINE, TWO_LINES):
        lines = 1 if width == LINE else 2
        while lines > 0:
            if end >= len(data):
                return 0
            lines -= data[end] == ord('\n')
            end += 1
    else:
        count = 1 if width == -2 else (8 if width == -5 else 4)
        if end + count > len(data):
            return 0
        text = _number(data, end, count)
        if text < 0:
            return -1
        end += count + text
    return end - pos if end <= len(data) else 0


@compiled
def _is_text(data, pos, length, key):
    """Whether the opcode at a place is that of this text."""
    head = 2 if WIDTHS[data[pos]] == -2 else 5
    same = length == head + len(key)
    for i in range(len(key)):
        same = same and data[pos + head + i] == key[i]
    return same


@compiled
def _mark_used(data, used, seen):
    """Notes which numbers are referred to.

    Args:
        data: Bytes of the pickle, from an opcode on.
        used: Number -> whether it is referred to. Updated.
        seen: Whether objects are numbered as they come, and whether by the
            number that stands there. Updated.

    Returns:
        Bytes that were looked at; -1 where the pickle cannot be rewritten.
    """
    pos = 0
    while pos < len(data):
        length = _length(data, pos)
        if length <= 0:
            return pos if length == 0 else -1
        kind = KINDS[data[pos]]
        if kind == NUMBERED:
            seen[0] = True
        elif kind in (PUT, GET):
            number = _number(data, pos + 1, length - 1)
            if number >= len(used):
                return -1
            if kind == PUT:
                seen[1] = True
            else:
                used[number] = True
        pos += length
    return pos


@compiled
def _rewrite(data, used, low, numbers, key, name, out, state):
    """Writes a part of the pickle anew.

    Args:
        data: Bytes of the pickle, from an opcode on.
        used: Number -> whether it is referred to.
        low: The new numbers of the first ones, which are asked for most.
        numbers: All that are referred to; their places are the new ones.
        key: The key of the list of records.
        name: Opcodes that take the place of that list.
        out: Where to write, from its start.
        state: Objects that were numbered so far; bytes written; and 0 before
            the key, 1 behind it, 2 once the list is replaced. Updated.

    Returns:
        Bytes that were read.
    """
    pos, put = 0, 0
    while pos < len(data):
        length = _length(data, pos)
        if length <= 0:
            break
        kind = KINDS[data[pos]]
        number, kept = 0, kind != FRAME
        if kind == NUMBERED:
            kept = used[state[0]]
            state[0] += 1
        elif kind in (PUT, GET):
            number = _number(data, pos + 1, length - 1)
            kept = used[number]
        elif state[2] == 1 and kind == LIST:
            out[put : put + len(name)] = name
            put += len(name)
            state[2] = 2
            kept = False
        elif state[2] < 2:
            state[2] = kind == TEXT and _is_text(data, pos, length, key)
        if kept:
            for i in range(length):
                out[put + i] = data[pos + i]
            if kind in (PUT, GET):
                if number < len(low):
                    number = low[number]
                else:
                    number = np.searchsorted(numbers, number)
                for i in range(1, length):
                    out[put + i] = number & 255
                    number >>= 8
            put += length
        pos += length
    state[1] = put
    return pos


class _Rewritten(io.RawIOBase):
    """A pickle whose opcodes are rewritten while it is read."""

    def __init__(self, file: BinaryIO, key: str, used: np.ndarray) -> None:
        self._chunks = _Chunks(file)
        self._used, self._numbers = used, np.flatnonzero(used)
        self._low = np.cumsum(used[:LOW]) - 1
        self._key = np.frombuffer(key.encode(), np.uint8)
        name = 'c{}\n{}\n'.format(*RECORDS).encode()
        self._name = np.frombuffer(name, np.uint8)
        self._state = np.zeros(3, np.int64)
        self._ready = memoryview(b'')

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._ready:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            out = np.empty(len(chunk) + len(self._name), np.uint8)
            self._chunks.used = _rewrite(
                chunk,
                self._used,
                self._low,
                self._numbers,
                self._key,
                self._name,
                out,
                self._state,
            )
            self._ready = memoryview(out)[: self._state[1]]
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._chunks.close()
        super().close()


class _Chunks:
    """The bytes of a file, piece by piece; each begins where an opcode does.

    Attributes:
        used: To be set after each piece: how much of it was understood. The
            rest comes again with the next one.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._piece, self.used = file, b'', 0

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        left = self._piece[self.used :]
        # An opcode that is larger than a piece needs a larger one.
        more = self._file.read(max(CHUNK, len(left)))
        if not more:
            raise StopIteration
        self._piece, self.used = left + more, 0
        return np.frombuffer(self._piece, np.uint8)

    def close(self) -> None:
        self._file.close()


def open_stream(path: Path, key: str) -> BinaryIO | None:
    """Opens a pickle so that its records come in batches.

    Args:
        path: The file; it holds a dict.
        key: The key of the list of records in it.

    Returns:
        The rewritten pickle; None where that cannot be done.
    """
    # As many numbers as bytes, at most. Pages that stay zero take no memory.
    used = np.zeros(path.stat().st_size + 1, np.bool_)
    seen = np.zeros(2, np.bool_)
    with path.open('rb') as file:
        chunks = _Chunks(file)
        for chunk in chunks:
            chunks.used = _mark_used(chunk, used, seen)
            if chunks.used < 0 or seen.all():
                return None
    stream = _Rewritten(path.open('rb', buffering=0), key, used)
    return io.BufferedReader(stream, CHUNK // 4)
