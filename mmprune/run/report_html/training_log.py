"""The curves of trainings, read from the logs that mmengine writes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Times and counters of a record; everything else is a curve.
_NO_CURVE = {'step', 'iter', 'epoch', 'time', 'data_time', 'memory', 'eta'}


class Series(NamedTuple):
    """One curve."""

    steps: list[float]
    values: list[float]


class Run(NamedTuple):
    """The training below one work directory, resumed runs joined."""

    name: str  # path of the work directory, '.' for the searched folder
    train: dict[str, Series]  # by iteration
    val: dict[str, Series]
    val_by_epoch: bool


def read_runs(folder: Path) -> list[Run]:
    """Returns the trainings found in a folder and up to two levels below.

    mmengine writes ``<work_dir>/<timestamp>/vis_data/<timestamp>.json``, one
    file per start. Where a later start has the same steps again, because the
    first was killed after its last checkpoint, those of the later one hold.

    Args:
        folder: A work directory, or one that holds some.
    """
    found: dict[Path, list[Path]] = {}
    patterns = ('*/vis_data', '*/*/vis_data', '*/*/*/vis_data')
    for pattern in patterns:
        for data in sorted(folder.glob(pattern)):
            found.setdefault(data.parents[1], []).append(data)
    runs = []
    for work_dir, starts in sorted(found.items()):
        train: list[dict] = []
        val: list[dict] = []
        for data in sorted(starts, key=lambda p: p.parent.name):
            records = list(_records(data))
            # Only a training iteration is logged with its number.
            newer = [r for r in records if 'iter' in r]
            if train and newer and newer[0]['step'] <= train[0]['step']:
                val = []  # begun anew: those are of another model
            train = _join(train, newer)
            val = _join(val, [r for r in records if 'iter' not in r])
        if train or val:
            name = work_dir.relative_to(folder).as_posix()
            runs.append(
                Run(name, _series(train), _series(val), _by_epoch(train, val))
            )
    return runs


def _records(data: Path) -> Iterator[dict]:
    """Yields the lines of a start; one that is cut off is left out."""
    logs = sorted(data.glob('*.json'))
    # mmengine writes every line into scalars.json as well.
    logs = [p for p in logs if p.name != 'scalars.json'] or logs
    for log in logs:
        for line in log.read_text(errors='replace').splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and _is_number(record.get('step')):
                yield record


def _join(older: list[dict], newer: list[dict]) -> list[dict]:
    """The records of both; from the first step of the newer on, its own."""
    if not newer:
        return older
    begin = min(record['step'] for record in newer)
    return [r for r in older if r['step'] < begin] + newer


def _series(records: list[dict]) -> dict[str, Series]:
    series: dict[str, Series] = {}
    for record in records:
        for name, value in record.items():
            if name in _NO_CURVE or not _is_number(value):
                continue
            one = series.setdefault(name, Series([], []))
            one.steps.append(record['step'])
            one.values.append(value)
    return series


def _by_epoch(train: list[dict], val: list[dict]) -> bool:
    """Whether the steps of evaluations are epochs, which no line says."""
    epochs = [r['epoch'] for r in train if _is_number(r.get('epoch'))]
    last = max((r['step'] for r in val), default=0)
    return bool(epochs) and last <= max(epochs)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
