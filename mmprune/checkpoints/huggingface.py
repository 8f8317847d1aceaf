"""Folders of Hugging Face models: what is in them, and whether it is safe."""

import json
from pathlib import Path

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'


def is_folder(path: str | Path) -> bool:
    """Returns whether a path is a folder of a Hugging Face model."""
    return (Path(path) / 'config.json').is_file()


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
