"""The first records of a pickle, without those that follow."""

from collections.abc import Sequence
from pickletools import genops, markobject
from typing import BinaryIO

# Opcodes that leave the reader's stack alone.
QUIET = {'PROTO', 'FRAME', 'MEMOIZE', 'PUT', 'BINPUT', 'LONG_BINPUT'}
FRAME_BYTES = 9
# What stands before the records is short, or they are not looked for.
OPCODES_BEFORE = 20_000


def first_records(
    file: BinaryIO, keys: Sequence[str], count: int
) -> bytes | None:
    """Returns the beginning of a pickle, made whole.

    Args:
        file: A pickle of a dict, open at its start.
        keys: Possible keys of a list of dicts in it, the records.
        count: How many of them are wanted.

    Returns:
        A pickle of the dict with what stands before the list, and the list
        of the first records. None where it has fewer, or where the pickle
        cannot be cut; what is damaged there is left to its reader.
    """
    # Objects on the reader's stack, and how many lay below each mark.
    depth, marks = 0, []
    level, trail, frames = 0, ('', ''), []
    try:
        for place, (opcode, value, pos) in enumerate(genops(file)):
            name = opcode.name
            if not level and place > OPCODES_BEFORE:
                return None
            if name == 'FRAME':
                frames.append(pos)
            if name in QUIET:
                continue
            if level and len(marks) == level and depth - marks[-1] == count:
                if name in ('EMPTY_DICT', 'APPENDS'):
                    return _cut(file, pos, frames)
                if name != 'MARK':
                    return None
            if markobject in opcode.stack_before:
                if len(marks) == level:
                    return None
                below = opcode.stack_before.index(markobject)
                depth = marks.pop() - below + len(opcode.stack_after)
            elif name == 'MARK':
                marks.append(depth)
                if trail[0] in keys and trail[1] == 'EMPTY_LIST':
                    level = len(marks)
            else:
                depth += len(opcode.stack_after) - len(opcode.stack_before)
            # One mark of the dict's items, one of the list's.
            if level not in (0, 2):
                return None
            trail = trail[1], value if 'UNICODE' in name else name
    except (ValueError, IndexError):
        return None
    return None


def _cut(file: BinaryIO, end: int, frames: list[int]) -> bytes:
    """The opcodes up to a place, then the ends of list, dict and pickle."""
    file.seek(0)
    data = bytearray(file.read(end))
    # A frame says how long it is, which is no longer true.
    for pos in reversed(frames):
        del data[pos : pos + FRAME_BYTES]
    return bytes(data) + b'eu.'
