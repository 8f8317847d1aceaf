"""Writes files that are whole or not there at all."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TEMPORARY = r'(.+\.(pth|pth\.tar|json|py|png|html)|last_checkpoint)\.\d+\.tmp'


def write_whole(path: str | Path, data: bytes) -> None:
    """Writes ``data`` beside ``path``, flushes it to disk and renames it.

    At every moment ``path`` is the old file or the new one, also after
    ``kill -9``, a power cut or with a full disk.

    Raises:
        OSError: If it cannot be written; the old file is untouched and no
            part of the new one is left.
    """

    def write(beside: Path) -> None:
        with beside.open('wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    _replace(Path(path), write)


def save_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Writes what ``torch.save`` writes with :func:`write_whole`."""
    import torch

    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_whole(path, buffer.getvalue())


def point_to(link: str | Path, target: str | Path) -> None:
    """Makes ``link`` a relative link to ``target``, in one step.

    Where the file system has no links it becomes a copy.

    Args:
        link: What shall lead to the target; replaced if it exists.
        target: A file in the folder of the link.

    Raises:
        OSError: If neither works; ``link`` is then what it was.
    """
    link, target = Path(link), Path(target)
    try:
        _replace(link, lambda beside: beside.symlink_to(target.name))
    except (OSError, NotImplementedError):
        _replace(link, lambda beside: shutil.copyfile(target, beside))


def remove_temporary(folder: str | Path) -> list[str]:
    """Removes what killed runs left half-written, and returns the names."""
    found = [
        path
        for path in Path(folder).glob('*.tmp')
        if re.fullmatch(_TEMPORARY, path.name)
    ]
    for path in found:
        path.unlink(missing_ok=True)
    return sorted(path.name for path in found)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    beside.unlink(missing_ok=True)
    try:
        write(beside)
        os.replace(beside, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno:
            error.filename = error.filename or str(path)
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    # The rename itself survives a power cut only when its folder is on disk.
    # Some network file systems and Windows cannot flush a folder.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
