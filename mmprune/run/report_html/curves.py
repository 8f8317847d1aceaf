"""The curves of a run's trainings as one picture."""

import io
import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...atomic_file import write_whole
from .charts import MAX_LINES, Line, thin
from .training_log import Run, Series, read_runs

FORMATS = ('.png', '.svg', '.pdf')
_COLUMNS = 3


def save_curves(folder: str | Path, path: str | Path) -> Path:
    """Draws loss, learning rate and metrics of all trainings of a folder.

    A row per training: its loss, its learning rate and what was evaluated.
    The picture is written beside its place and renamed.

    Raises:
        ValueError: If the format is another, or there is no log.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f'curves are written as {", ".join(FORMATS)}, found {path}; '
            'choose one of these.'
        )
    runs = read_runs(Path(folder))
    if not runs:
        raise ValueError(
            f'{folder} holds no log of a training (*/vis_data/*.json); '
            'train first.'
        )
    figure = Figure(
        figsize=(5 * _COLUMNS, 3.4 * len(runs)), dpi=120, layout='constrained'
    )
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(runs), _COLUMNS, squeeze=False)
    for row, run in zip(rows, runs, strict=True):
        _draw_run(row, run)
    stream = io.BytesIO()
    figure.savefig(stream, format=path.suffix[1:].lower())
    write_whole(path, stream.getvalue())
    return path


def _draw_run(row: list[Axes], run: Run) -> None:
    train, name = run.train, '' if run.name == '.' else f'{run.name}: '
    loss = {k: v for k, v in train.items() if k == 'loss'}
    rate = {k: v for k, v in train.items() if k == 'lr'}
    _draw(row[0], f'{name}loss', 'iteration', loss)
    _draw(row[1], f'{name}learning rate', 'iteration', rate)
    metrics = dict(list(run.val.items())[:MAX_LINES])
    x_label = 'epoch' if run.val_by_epoch else 'iteration'
    _draw(row[2], f'{name}evaluated', x_label, metrics)
    if len(metrics) > 1:
        row[2].legend(fontsize=7)


def _draw(
    axes: Axes, title: str, x_label: str, series: dict[str, Series]
) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label, fontsize=9)
    axes.grid(color='#d9dce0', lw=0.5)
    if not series:
        axes.text(0.5, 0.5, 'not logged', ha='center', color='#70767e')
        return
    for name, one in series.items():
        line = thin(Line(name, one.steps, one.values))
        few = len(line.x) < 30
        axes.plot(line.x, line.y, '.-' if few else '-', lw=1.4, label=name)
    values = [v for s in series.values() for v in s.values if math.isfinite(v)]
    if values and min(values) > 0 and max(values) / min(values) > 50:
        axes.set_yscale('log')
