"""One page about a run that opens anywhere: no script, nothing to fetch."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from ...atomic_file import write_whole
from ...version import __version__
from ..report import variants_of
from . import tables
from .chart_boxes import run_charts, series_chart
from .charts import TEMPLATES
from .curves import save_curves
from .module_tree import cut_tree
from .pictures import embed_all, find_pictures
from .training_log import Run, read_runs

__all__ = ['render', 'save_curves', 'write']


def write(folder: str | Path, frames: Sequence[str | Path] = ()) -> Path:
    """Writes ``report.html`` into the folder of a run and returns its path.

    It can be called at any time, also while a training runs: what is not
    there yet is named on the page, with what would add it. The file appears
    whole or not at all.

    Args:
        folder: What ``tools/prune_and_retrain.py`` or ``tools/train.py``
            wrote.
        frames: Further pictures, PNG, JPEG or GIF.

    Raises:
        ValueError: If there is neither a report nor a log of a training, or
            ``report.json`` is damaged.
    """
    folder = Path(folder)
    text = render(folder, [Path(path) for path in frames])
    target = folder / 'report.html'
    write_whole(target, text.encode())
    return target


def render(folder: Path, frames: Sequence[Path] = ()) -> str:
    """Returns the text of the page; see :func:`write`."""
    report, runs = _read_report(folder), read_runs(folder)
    if not report and not runs:
        raise ValueError(
            f'{folder} holds neither report.json nor a log of a training '
            '(*/vis_data/*.json); give the output folder of '
            'tools/prune_and_retrain.py or a work directory.'
        )
    sections = [_section(s, folder) for s in report.get('sections') or []]
    drawn = [s['path'] for s in sections if s['path']]
    paths = _picture_paths(folder, report, frames, drawn)
    pictures = dict(embed_all([*drawn, *paths]))
    for section in sections:
        section['picture'] = pictures.get(section['path'])
    return TEMPLATES.get_template('report.html.j2').render(
        report=report,
        title=report.get('title') or folder.resolve().name,
        written=time.strftime('%Y-%m-%d %H:%M'),
        version=__version__,
        runs=_run_rows(runs, report),
        pictures=[pictures[path] for path in paths],
        sections=sections,
        **_numbers(report),
    )


def _numbers(report: dict) -> dict:
    """What the template shows of the report itself."""
    models = report.get('models')
    return dict(
        tiles=tables.tiles(report),
        metric=tables.metric_tile(report),
        costs=tables.cost_rows(models) if models else None,
        metrics=tables.metric_rows(report),
        cuts=_cuts(report),
        quantity=tables.quantity,
        percent=tables.percent,
    )


def _cuts(report: dict) -> list[dict]:
    """What each variant lost, those that lost units first."""
    cuts = []
    for name, found in variants_of(report).items():
        for kind, key in (('units', 'modules'), ('weights', 'weights')):
            tree = cut_tree(found, key)
            if tree is not None:
                reasons = tables.dense_reasons(found)
                cuts.append(
                    dict(found, name=name, kind=kind, tree=tree, why=reasons)
                )
    return sorted(cuts, key=lambda cut: cut['kind'])


def _picture_paths(
    folder: Path, report: dict, frames: Sequence[Path], drawn: Sequence[Path]
) -> list[Path]:
    """Each picture once: the given, the listed, then those of the folder."""
    listed = [folder / path for path in report.get('frames') or []]
    paths = [*frames, *listed, *find_pictures(folder)]
    unique = dict.fromkeys(path.resolve() for path in paths)
    return [path for path in unique if path not in drawn]


def _read_report(folder: Path) -> dict:
    path = folder / 'report.json'
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f'{path} cannot be read as JSON ({error}); run the pruning '
            'again with --force.'
        ) from error
    if not isinstance(report, dict):
        raise ValueError(
            f'{path} must hold an object, found {type(report).__name__}; '
            'run the pruning again with --force.'
        )
    return report


def _run_rows(runs: Sequence[Run], report: dict) -> list[dict]:
    rows = []
    for run in runs:
        charts = run_charts(run, report)
        if charts:
            name = '' if run.name == '.' else run.name
            rows.append(dict(name=name, charts=charts))
    return rows


def _section(section: dict, folder: Path) -> dict:
    image = section.get('image')
    return dict(
        title=section.get('title', ''),
        text=section.get('text', ''),
        table=section.get('table'),
        chart=series_chart(section),
        path=(folder / image).resolve() if image else None,
    )
