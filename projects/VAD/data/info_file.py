"""Reads info files without running what they carry."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmprune.checkpoints.plain_pickle import (
    load_plain_pickle,
    read_plain_pickle,
)
from projects.VAD.data.record_head import first_records
from projects.VAD.data.record_stream import RECORDS, open_stream

# The list of records in VAD's own files, and in those of mmdet3d 1.x.
LISTS = ('infos', 'data_list')


def load_info_file(path: str | Path, temporal: bool = False) -> dict:
    """Reads one annotation file of the mmdet3d 1.x layout.

    Only plain containers, numbers, strings and numpy arrays are admitted;
    see ``mmprune.checkpoints.plain_pickle``.

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
    path = _existing(path)
    with _called_info_file():
        content = load_plain_pickle(path)
    return _checked_layout(path, content, temporal)


def load_first_records(path: str | Path, count: int) -> dict | None:
    """Reads the first records of an info file of either layout.

    Args:
        path: As for ``load_info_file``.
        count: How many.

    Returns:
        What the file holds up to there; None where it has fewer records, or
        where its beginning does not say enough.
    """
    path = _existing(path)
    with path.open('rb') as file:
        start = first_records(file, LISTS, count)
    if start is None:
        return None
    with _called_info_file():
        content = read_plain_pickle(io.BytesIO(start), path)
    # Labels mean nothing without the classes, which may come last.
    known = 'infos' in content or 'metainfo' in content
    return content if known else None


def stream_info_file(
    path: str | Path, take: Callable[[list[dict]], None], key: str = 'infos'
) -> dict:
    """Reads an info file; its records are handed over in batches.

    So they never exist all at once, which takes gigabytes.

    Args:
        path: As for ``load_info_file``.
        take: Called with some of the records of a list at a time.
        key: The list: ``infos``, VAD's own, or ``data_list``.

    Returns:
        The file's dictionary, without these records.

    Raises:
        FileNotFoundError: As ``load_info_file``.
        ValueError: As ``load_info_file``.
    """
    path = _existing(path)
    records = _Taken(take)
    stream = open_stream(path, key)
    if stream is None:
        content = load_info_file(path, temporal=True)
        return _without_records(content, take, key)
    try:
        with stream, _called_info_file():
            content = read_plain_pickle(
                stream, path, admitted={RECORDS: records}
            )
    except ValueError:
        if records.problem is not None:
            raise records.problem from None
        raise
    if isinstance(content, dict) and content.get(key) is records:
        content[key] = []
    elif records.taken:
        raise ValueError(
            f'info file {path} has {key} inside of another part; write it '
            'again with the list at its top.'
        )
    content = _checked_layout(path, content, True)
    return _without_records(content, take, key)


def stream_keyframes(
    path: str | Path, take: Callable[[list[dict], dict], None]
) -> dict | None:
    """Reads a file of mmdet3d 1.x; records are handed over in batches.

    Args:
        path: As for ``load_info_file``.
        take: Called with some records at a time, and the file's ``metainfo``.

    Returns:
        The file's dictionary without the records; None where it has another
        layout, no record, or its ``metainfo`` behind the records. Nothing
        was handed over then.
    """
    start = load_first_records(path, 1)
    if start is None or 'data_list' not in start:
        return None
    metainfo = start['metainfo']
    return stream_info_file(path, lambda r: take(r, metainfo), 'data_list')


def _without_records(content: dict, take: Callable, key: str) -> dict:
    if content.get(key):
        take(content[key])
        content[key] = []
    return content


@contextmanager
def _called_info_file() -> Iterator[None]:
    """Lets what is wrong with a pickle be said of an info file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'info file {error}') from error


class _Taken:
    """What stands for the list of records while a file is read."""

    def __init__(self, take: Callable[[list[dict]], None]) -> None:
        self._take = take
        self.taken = False
        self.problem: Exception | None = None

    def extend(self, records: list[dict]) -> None:
        self.taken = True
        try:
            self._take(records)
        except Exception as error:
            # Not one of the pickle.
            self.problem = error
            raise

    def append(self, record: dict) -> None:
        self.extend([record])


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f'info file {path} does not exist; pass the path of an mmdet3d '
            'info file (*.pkl).'
        )
    return path


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
