"""Reads info files without running what they carry."""

from pathlib import Path
from typing import Any

from mmprune.checkpoints.plain_pickle import load_plain_pickle


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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f'info file {path} does not exist; pass the path of an mmdet3d '
            'info file (*.pkl).'
        )
    try:
        content = load_plain_pickle(path)
    except ValueError as error:
        raise ValueError(f'info file {error}') from error
    return _checked_layout(path, content, temporal)


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
