"""Sparse weights on disk without their zeros, read back bit by bit."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atomic_file import write_whole
from .huggingface import INDEX, weight_files

# Of the metadata of a safetensors file.
_KEY = 'mmprune_packed'
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Integer types in which numpy can look for zeros.
BITS, PATTERN = 'bits', '2:4'


def pack_folder(folder: str | Path, out: str | Path) -> dict[str, int]:
    """Writes a model folder whose sparse matrices are stored without zeros.

    Each file of weights becomes one of the same name; all other files are
    copied. A matrix with 2 of 4 neighbours zero is stored as values and two
    bits for the position of each; any other as values and one bit per
    weight; what that does not shorten as it is.

    Args:
        folder: A Hugging Face folder with safetensors.
        out: Where; its files of weights are replaced.

    Returns:
        Bytes of the weights: ``dense`` and ``packed`` of all tensors,
        ``sparse_dense`` and ``sparse_packed`` of those that were packed.

    Raises:
        ValueError: If the folder has no safetensors, or is packed already.
    """
    from safetensors import safe_open

    folder, out = Path(folder), Path(out)
    places = weight_files(folder)
    sizes = dict.fromkeys(
        ('dense', 'packed', 'sparse_dense', 'sparse_packed'), 0
    )
    for path in sorted(set(places.values())):
        with safe_open(path, 'pt') as file:
            metadata = file.metadata() or {}
            if _KEY in metadata:
                raise ValueError(f'{folder} is packed already')
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
        stored, entries = pack_state(state)
        _count(sizes, state, stored, entries)
        _write(out / path.name, stored, entries, metadata)
    _copy_rest(folder, out, {p.name for p in places.values()})
    return sizes


def unpack_folder(folder: str | Path, out: str | Path) -> None:
    """Writes the folder that :func:`pack_folder` was given, bit by bit.

    Raises:
        ValueError: If a file is not packed or damaged.
    """
    from safetensors import safe_open
    from safetensors.torch import save

    folder, out = Path(folder), Path(out)
    written = set()
    for path in sorted(set(weight_files(folder).values())):
        with safe_open(path, 'pt') as file:
            metadata = dict(file.metadata() or {})
        metadata.pop(_KEY, None)
        written.add(path.name)
        write_whole(out / path.name, save(load_packed(path), metadata or None))
    _copy_rest(folder, out, written)


def is_packed(folder: str | Path) -> bool:
    """Whether a model folder stores its weights without zeros."""
    from safetensors import safe_open

    for name in ('model.safetensors', INDEX):
        path = Path(folder) / name
        if not path.is_file():
            continue
        if name == INDEX:
            path = next(iter(weight_files(folder).values()))
        with safe_open(path, 'pt') as file:
            return _KEY in (file.metadata() or {})
    return False


def load_packed(source: str | Path) -> dict[str, Tensor]:
    """Returns the weights of a packed file or folder, zeros included.

    Raises:
        ValueError: If a file is not packed or damaged.
    """
    from safetensors import safe_open

    source = Path(source)
    if source.is_dir():
        paths = sorted(set(_files(source)))
        return {k: v for path in paths for k, v in load_packed(path).items()}
    with safe_open(source, 'pt') as file:
        text = (file.metadata() or {}).get(_KEY)
        if text is None:
            raise ValueError(f'{source} is not packed; load it as it is')
        names = file.keys()
        stored = {name: file.get_tensor(name) for name in names}
    try:
        return unpack_state(stored, json.loads(text))
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f'{source} is damaged: {error}') from error


def pack_state(
    state: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """Returns what is stored of a state dict, and how each entry is packed.

    Args:
        state: Name -> tensor, of any type.

    Returns:
        Tensors by name, ``NAME.values`` with ``NAME.bits`` or
        ``NAME.positions`` for packed ones; and name -> ``kind``, ``shape``
        and, of 2:4, ``dim``.
    """
    stored, entries = {}, {}
    for name, tensor in state.items():
        packed = _packed(tensor) if tensor.ndim == 2 else None
        if packed is None:
            stored[name] = tensor
            continue
        parts, entries[name] = packed
        stored |= {f'{name}.{part}': value for part, value in parts.items()}
    return stored, entries


def unpack_state(
    stored: Mapping[str, Tensor], entries: Mapping[str, Mapping]
) -> dict[str, Tensor]:
    """Returns the state dict that :func:`pack_state` was given."""
    parts = {f'{name}.{part}' for name in entries for part in _PARTS}
    state = {k: v for k, v in stored.items() if k not in parts}

    def unpacked(name: str) -> Tensor:
        entry, values = entries[name], stored[f'{name}.values']
        shape = tuple(entry['shape'])
        if entry['kind'] == PATTERN:
            positions = stored[f'{name}.positions']
            return _from_pattern(values, positions, shape, entry['dim'])
        return _from_bits(values, stored[f'{name}.bits'], shape)

    # What they call holds no lock, so that all cores work.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(unpacked, entries)
        return state | dict(zip(entries, found, strict=True))


_PARTS = ('values', 'bits', 'positions')
# Which of four neighbours are filled, as a number -> the positions of two of
# them, in order; where fewer are filled, those of the first zeros come too.
_PLACES = torch.tensor(
    [
        sorted(sorted(range(4), key=lambda i: not code >> i & 1)[:2])
        for code in range(16)
    ],
    dtype=torch.uint8,
)


def _packed(tensor: Tensor) -> tuple[dict[str, Tensor], dict] | None:
    """The parts of a matrix and their description; none if not shorter."""
    tensor = tensor.contiguous()
    # By their bits: minus zero and NaN are values like any other.
    raw = tensor.view(_INTEGERS[tensor.element_size()])
    filled = raw != 0
    size = tensor.numel() * tensor.element_size()
    parts: dict[str, Tensor]
    for dim in (1, 0):
        if _is_pattern(filled, dim):
            parts, kind = _to_pattern(tensor, filled, dim), PATTERN
            break
    else:
        dim, kind = 1, BITS
        bits = np.packbits(filled.numpy())
        parts = dict(values=tensor[filled], bits=torch.from_numpy(bits))
    if sum(p.numel() * p.element_size() for p in parts.values()) >= size:
        return None
    entry: dict[str, Any] = dict(kind=kind, shape=list(tensor.shape))
    return parts, entry | (dict(dim=dim) if kind == PATTERN else {})


def _is_pattern(filled: Tensor, dim: int) -> bool:
    """Whether 2 of each 4 neighbours along a dimension are zero."""
    rows = filled.movedim(dim, -1)
    if rows.shape[-1] % 4:
        return False
    return bool((rows.reshape(-1, 4).sum(1, dtype=torch.uint8) <= 2).all())


def _to_pattern(tensor: Tensor, filled: Tensor, dim: int) -> dict[str, Tensor]:
    groups = tensor.movedim(dim, -1).reshape(-1, 4)
    inside = filled.movedim(dim, -1).reshape(-1, 4)
    weights = torch.tensor([1, 2, 4, 8], dtype=torch.uint8)
    codes = (inside.view(torch.uint8) * weights).sum(1, dtype=torch.uint8)
    places = _PLACES[codes.int()]
    return dict(
        values=groups.gather(1, places.long()).flatten(),
        positions=_four_to_a_byte(places.flatten()),
    )


def _from_pattern(
    values: Tensor, positions: Tensor, shape: tuple[int, ...], dim: int
) -> Tensor:
    count = values.numel()
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    places = (positions[:, None] >> shifts) & 3
    places = places.flatten()[:count].view(-1, 2).long()
    groups = torch.zeros(count // 2, 4, dtype=values.dtype).scatter_(
        1, places, values.view(-1, 2)
    )
    rows = groups.view(shape if dim == 1 else shape[::-1])
    return rows if dim == 1 else rows.T.contiguous()


def _four_to_a_byte(places: Tensor) -> Tensor:
    rest = -places.numel() % 4
    rows = torch.cat([places, places.new_zeros(rest)]).view(-1, 4)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    return (rows << shifts).sum(1, dtype=torch.uint8)


def _from_bits(values: Tensor, bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    count = int(np.prod(shape))
    inside = np.unpackbits(bits.numpy(), count=count)
    mask = torch.from_numpy(inside).view(torch.bool).view(shape)
    return torch.zeros(shape, dtype=values.dtype).masked_scatter_(mask, values)


def _files(folder: Path) -> Iterable[Path]:
    """The files of weights; the index of a packed folder names the tensors
    that it had before."""
    if (folder / INDEX).is_file():
        names = json.loads((folder / INDEX).read_text())['weight_map']
        return {folder / name for name in names.values()}
    return [folder / 'model.safetensors']


def _write(
    path: Path,
    stored: Mapping[str, Tensor],
    entries: Mapping[str, dict],
    metadata: Mapping[str, str],
) -> None:
    from safetensors.torch import save

    stored = {name: tensor.contiguous() for name, tensor in stored.items()}
    text = {**metadata, _KEY: json.dumps(entries)}
    write_whole(path, save(stored, text))


def _copy_rest(folder: Path, out: Path, but: set[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file() and path.name not in but:
            shutil.copyfile(path, out / path.name)


def _count(
    sizes: dict[str, int],
    state: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    entries: Mapping[str, dict],
) -> None:
    def total(tensors: Iterable[Tensor]) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    sizes['dense'] += total(state.values())
    sizes['packed'] += total(stored.values())
    sizes['sparse_dense'] += total(state[name] for name in entries)
    sizes['sparse_packed'] += total(
        value
        for name, value in stored.items()
        if name.rpartition('.')[0] in entries
    )
