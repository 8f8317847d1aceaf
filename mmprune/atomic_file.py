"""Writes files that are whole or not there at all."""

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
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

    write_by(Path(path), write)


def save_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Writes what ``torch.save`` writes with :func:`write_whole`."""
    import torch

    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_whole(path, buffer.getvalue())


def save_json(data: Mapping[str, Any], path: str | Path) -> None:
    """Writes data as JSON with :func:`write_whole`."""
    text = json.dumps(data, indent=1, default=str) + '\n'
    write_whole(path, text.encode())


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
        write_by(link, lambda beside: beside.symlink_to(target.name))
    except (OSError, NotImplementedError):
        write_by(link, lambda beside: shutil.copyfile(target, beside))


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


def write_folder(path: str | Path, write: Callable[[Path], object]) -> None:
    """Makes a folder in one step, with what ``write`` puts into it.

    Args:
        path: Where; a folder there is replaced when the new one is done.
        write: Called with a folder to fill.
    """
    path = Path(path)
    beside, old = (
        path.with_name(f'{path.name}.{os.getpid()}.{end}')
        for end in ('tmp', 'old')
    )
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        write(beside)
        if path.exists():
            os.replace(path, old)
        os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    _flush_folder(path.parent)


def write_by(path: Path, write: Callable[[Path], object]) -> None:
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
