"""Folders of Hugging Face models: what is in them, and whether it is safe."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..atomic_file import write_by

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
# Name in files -> in the model, where transformers has renamed a layer: the
# head of GPT-NeoX.
RENAMED = {'embed_out.weight': 'lm_head.weight'}


def is_folder(path: str | Path) -> bool:
    """Returns whether a path is a folder of a Hugging Face model."""
    return (Path(path) / 'config.json').is_file()


def with_own_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's config in which no folder is named for its shape.

    Args:
        model: A config; where its ``config`` is a folder, what that folder
            says takes its place.
    """
    model, source = dict(model), model.get('config')
    if isinstance(model.get('model'), Mapping):
        model['model'] = with_own_config(model['model'])
    if isinstance(source, str) and is_folder(Path(source).expanduser()):
        path = Path(source).expanduser() / 'config.json'
        model['config'] = json.loads(path.read_text())
    return model


def check_folder(source: str | Path, trust: bool = False) -> bool:
    """Returns whether the weights of a folder or hub name are safetensors.

    Args:
        source: The folder; anything that is none is taken for a hub name.
        trust: Whether pickles will do.

    Raises:
        ValueError: If the folder has no model, no weights, or only pickles
            and is not trusted.
    """
    folder = Path(source).expanduser()
    if not folder.exists():
        if folder.is_absolute() or str(source).startswith(('.', '~')):
            raise ValueError(f'there is no model folder at {source}')
        return not trust
    if not folder.is_dir():
        raise ValueError(
            f'{source} is a file; give the folder that holds config.json'
        )
    if not is_folder(folder):
        raise ValueError(
            f'{source} has no config.json; give the folder of a Hugging Face '
            'model'
        )
    if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        return True
    pickles = sorted(p.name for p in folder.glob('*.bin'))
    if not pickles:
        raise ValueError(
            f'{source} has no weights: neither {WEIGHTS} nor {INDEX} is there'
        )
    if not trust:
        raise ValueError(
            f'{source} has its weights only as pickles ({pickles[0]}), which '
            'may run code; convert them to safetensors, or trust the folder '
            'with --trust-checkpoint'
        )
    return False


def weight_files(folder: str | Path) -> dict[str, Path]:
    """Returns the safetensors file of each tensor of a folder, by name.

    Raises:
        ValueError: If a file of the index is missing or there is no index.
    """
    from safetensors import safe_open

    folder = Path(folder)
    index = folder / INDEX
    if not index.is_file():
        with safe_open(folder / WEIGHTS, 'pt') as file:
            return dict.fromkeys(file.keys(), folder / WEIGHTS)
    try:
        names = json.loads(index.read_text())['weight_map']
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f'{index} is no index of safetensors') from error
    missing = {n for n in names.values() if not (folder / n).is_file()}
    if missing:
        raise ValueError(
            f'{folder} lacks {sorted(missing)[0]}, which its index names; '
            'fetch the model again'
        )
    return {name: folder / file for name, file in names.items()}


def file_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Returns what the tensors of a model are called in files.

    Args:
        model: The model.
        names: Those in the files, which may lack the prefix of the model
            without its head.

    Raises:
        ValueError: If a tensor is in no file and not tied to one that is.
    """
    prefix = f'{getattr(model, "base_model_prefix", "")}.'
    names = set(names)
    renamed = {new: old for old, new in RENAMED.items()}
    found = {}
    tied = set(getattr(model, 'all_tied_weights_keys', None) or ())
    for name in model.state_dict():
        candidates = name, name.removeprefix(prefix), renamed.get(name)
        for candidate in candidates:
            if candidate in names:
                found[name] = candidate
                break
        else:
            if name not in tied:
                raise ValueError(
                    f'{name} is in no file of the model, or under a name '
                    'that only transformers knows; leave --low-memory out'
                )
    return found


def read_tensors(
    files: Mapping[str, Path], names: Mapping[str, str]
) -> dict[str, Any]:
    """Returns tensors of safetensors files.

    Args:
        files: Name in a file -> the file.
        names: New name -> name in a file.
    """
    from safetensors import safe_open

    by_file: dict[Path, list[str]] = {}
    for new, old in names.items():
        by_file.setdefault(files[old], []).append(new)
    found = {}
    for path, wanted in by_file.items():
        with safe_open(path, 'pt') as file:
            found |= {new: file.get_tensor(names[new]) for new in wanted}
    return found


def save_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Writes a safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    plain = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
    }
    write_by(path, lambda beside: save_file(plain, beside, {'format': 'pt'}))
