"""Reads checkpoint files without running code from them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_trusted = False


class CheckpointError(ValueError):
    """A checkpoint that cannot or must not be read; says which and why."""


def load_checkpoint_file(
    path: str | Path,
    map_location: Any = 'cpu',
    trust: bool = False,
    mmap: bool = True,
) -> dict:
    """Returns the checkpoint in a file without running code from it.

    Reads what ``torch.save`` writes (also the format before torch 1.6) and
    ``.safetensors`` (as ``{'state_dict': ...}``). Besides tensors and plain
    containers only the types in :mod:`.allowlist` are built.

    Args:
        path: The file.
        map_location: As for ``torch.load``.
        trust: Unpickle everything, and so run whatever code is in the file.
        mmap: Map the tensors instead of reading them. Do not overwrite the
            file while such a tensor lives.

    Raises:
        CheckpointError: If the file is missing, damaged, no checkpoint, or
            needs more than the allow-list.
    """
    path = Path(path).expanduser()
    kind = _file_kind(path)
    if kind == 'safetensors':
        return {'state_dict': _load_safetensors(path, map_location)}
    options = dict(mmap=True) if mmap and kind == 'zip' else {}
    return unpickle(path, str(path), map_location, trust, **options)


def checkpoint_plan(checkpoint: Any) -> dict | None:
    """Returns the plan in a checkpoint as plain data, ``None`` if dense.

    In the file it may stand as text.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    data = meta.get('pruning_plan') if isinstance(meta, Mapping) else None
    return json.loads(data) if isinstance(data, str) else data


def trust_checkpoints(trust: bool = True) -> None:
    """Switches the allow-list off for every load of this process.

    This is what ``--trust-checkpoint`` calls: a checkpoint may then run code.
    """
    global _trusted
    _trusted = trust


def _file_kind(path: Path) -> str:
    if path.is_dir():
        raise CheckpointError(
            f'{path} is a directory; name the checkpoint file inside it'
        )
    if not path.is_file():
        raise CheckpointError(f'there is no checkpoint at {path}')
    try:
        with path.open('rb') as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(
            f'{path} cannot be read: {error.strerror}'
        ) from error
    if path.suffix == '.safetensors':
        return 'safetensors'
    if head.startswith(b'PK\x03\x04'):
        return 'zip'
    if head.startswith(b'\x80'):
        return 'legacy'
    if head.startswith(b'version https:/'):
        raise CheckpointError(
            f'{path} is a git-lfs pointer, not the checkpoint; run `git lfs '
            'pull`'
        )
    raise CheckpointError(
        f'{path} is not a checkpoint: it is empty'
        if not head
        else f'{path} is not a checkpoint: it begins with {head[:8]!r}, not '
        'as torch.save or safetensors begin'
    )


def _load_safetensors(path: Path, map_location: Any) -> dict:
    import torch

    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(
            f'{path} needs the package safetensors; pip install safetensors'
        ) from error
    on_device = isinstance(map_location, (str, torch.device))
    try:
        return load_file(path, str(map_location) if on_device else 'cpu')
    except Exception as error:
        raise CheckpointError(
            f'{path} is truncated or no safetensors file: {error}'
        ) from error


def unpickle(
    file: Any, name: str, map_location: Any, trust: bool, **options: Any
) -> dict:
    """Returns the dict in ``file``, a path or a binary stream."""
    import torch

    from . import allowlist

    options.update(map_location=map_location)
    try:
        if trust or _trusted:
            found = torch.load(file, weights_only=False, **options)
        else:
            with allowlist.active():
                found = torch.load(file, weights_only=True, **options)
        plan = checkpoint_plan(found)
        if plan is not None:
            found['meta']['pruning_plan'] = plan
    except Exception as error:
        raise CheckpointError(allowlist.explain(name, error)) from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f'{name} is not a checkpoint: it holds a '
            f'{type(found).__name__}, not a dict of weights'
        )
    return found
