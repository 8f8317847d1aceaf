"""Runs in folders with a name and a time, which later steps find."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic_file import write_whole

ABOUT = 'config.json'
HISTORY = 'training_history.json'


def new_folder(root: str | Path, name: str) -> Path:
    """Makes and returns ``ROOT/NAME_YYYYMMDD_HHMMSS``, one of its own."""
    while True:
        stamp = time.strftime('%Y%m%d_%H%M%S')
        folder = Path(root) / f'{name}_{stamp}'
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            time.sleep(0.2)


def newest(root: str | Path, name: str) -> Path | None:
    """Returns the newest finished folder of a name, ``None`` without one."""
    found = sorted(
        folder
        for folder in Path(root).glob(f'{name}_[0-9]*_[0-9]*')
        if (folder / ABOUT).is_file()
        and 'checkpoint' in about(folder)
        and folder.name.removeprefix(f'{name}_').replace('_', '').isdigit()
    )
    return found[-1] if found else None


def about(folder: str | Path) -> dict[str, Any]:
    """Returns what ``config.json`` of a folder says.

    Raises:
        ValueError: If it is missing or damaged.
    """
    path = Path(folder) / ABOUT
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(
            f'{folder} is no folder of a run: it has no {ABOUT}; name one '
            'that the earlier steps wrote'
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f'{path} is damaged: {error}') from error


def write_about(folder: Path, entries: Mapping[str, Any]) -> None:
    """Writes ``config.json``, whole; with ``checkpoint`` the run is done."""
    text = json.dumps(dict(entries), indent=2, default=str) + '\n'
    write_whole(folder / ABOUT, text.encode())


def write_history(folder: Path) -> list[dict[str, float]]:
    """Writes and returns one entry per epoch from the logs of a training.

    Each has the epoch, the last value of what was logged while it trained
    (``loss``, ``lr``, ``sparsity``, ...) and what was evaluated after it.
    """
    rows: dict[int, dict[str, float]] = {}
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    for line in (line for log in logs for line in log.open()):
        entry = json.loads(line)
        # A line of an evaluation has the epoch as its step and no loss.
        if 'loss' in entry:
            rows.setdefault(int(entry['epoch']), {}).update(entry)
        elif 'step' in entry:
            found = {k: v for k, v in entry.items() if k != 'step'}
            rows.setdefault(int(entry['step']), {}).update(found)
    history = [{**row, 'epoch': epoch} for epoch, row in sorted(rows.items())]
    text = json.dumps(history, indent=2) + '\n'
    write_whole(folder / HISTORY, text.encode())
    return history
