"""The charts of trainings and sections, with their tables of values."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from .charts import MAX_LINES, Line, line_chart, number
from .tables import better, main_metric
from .training_log import Run, Series

TABLE_ROWS = 12
MAX_METRIC_CHARTS = 6


def run_charts(run: Run, report: Mapping) -> list[dict]:
    """Returns the charts of a training."""
    train = dict(run.train)
    rates = [train.pop(name, None) for name in ('lr', 'base_lr')]
    rate = rates[0] or rates[1]
    parts = {k: v for k, v in train.items() if 'loss' in k and k != 'loss'}
    others = [k for k in train if k not in parts and k != 'loss']
    charts = []
    if 'loss' in train:
        charts.append(_chart('Loss', 'loss', {'loss': train['loss']}))
    if parts:
        largest = sorted(parts, key=lambda k: -_size(parts[k]))[:MAX_LINES]
        title = 'Parts of the loss'
        if len(parts) > len(largest):
            title += f', the {len(largest)} largest of {len(parts)}'
        shown = {name: parts[name] for name in largest}
        charts.append(_chart(title, 'loss', shown))
    if rate:
        charts.append(_chart('Learning rate', 'learning rate', {'lr': rate}))
    for name in others[:3]:
        charts.append(_chart(name, name, {name: train[name]}))
    charts += _metric_charts(run, report)
    return [chart for chart in charts if chart]


def series_chart(section: Mapping) -> dict | None:
    """Returns the chart of a section of the report that gives series."""
    shown = {
        str(one.get('name', '')): Series(list(one['x']), list(one['y']))
        for one in section.get('series') or []
    }
    if not shown:
        return None
    shown = dict(list(shown.items())[:MAX_LINES])
    x_label = str(section.get('x_label', 'step'))
    return _chart('', str(section.get('y_label', 'value')), shown, x_label)


def _metric_charts(run: Run, report: Mapping) -> list[dict | None]:
    """One chart per metric, with the dense model's value as a line."""
    x_label = 'epoch' if run.val_by_epoch else 'iteration'
    metrics = report.get('metrics') or {}
    dense = metrics.get('dense', {})
    charts = []
    for name in _first_metrics(run, report):
        if _is_in_the_table(run.val[name].values, name, metrics):
            continue
        shown = {name: run.val[name]}
        if isinstance(dense.get(name), int | float):
            steps = run.val[name].steps
            ends = sorted({min(steps), max(steps)})
            shown['dense model'] = Series(ends, [dense[name]] * len(ends))
        charts.append(_chart(f'{name}, evaluated', name, shown, x_label))
    return charts


def _is_in_the_table(values: list, name: str, metrics: Mapping) -> bool:
    """Whether a single value is that of a model the table of metrics has."""
    others = (row for model, row in metrics.items() if model != 'dense')
    known = (row.get(name) for row in others)
    listed = {number(v) for v in known if isinstance(v, int | float)}
    return len(values) == 1 and number(values[0]) in listed


def _first_metrics(run: Run, report: Mapping) -> Sequence[str]:
    names = [n for n in run.val if better(n, report.get('directions') or {})]
    names = names or list(run.val)
    main = main_metric(report)
    names.sort(key=lambda name: name != main)
    return names[:MAX_METRIC_CHARTS]


def _size(series: Series) -> float:
    finite = [abs(v) for v in series.values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else 0.0


def _chart(
    title: str,
    y_label: str,
    series: Mapping[str, Series],
    x_label: str = 'iteration',
) -> dict | None:
    lines = [Line(name, one.steps, one.values) for name, one in series.items()]
    values = [v for line in lines for v in line.y]
    broken = sum(not math.isfinite(v) for v in values)
    if broken == len(values):
        return None
    note = ''
    if broken:
        note = f'{broken} of {len(values)} values are not finite (gaps).'
    return dict(
        title=title,
        svg=Markup(line_chart(lines, x_label, y_label, y_label == 'loss')),
        names=[line.name for line in lines],
        note=note,
        table=_values_table(lines, x_label),
    )


def _values_table(lines: Sequence[Line], x_label: str) -> dict:
    """Evenly spaced points of the longest line, first and last included."""
    steps = max((line.x for line in lines), key=len)
    picked = np.linspace(0, len(steps) - 1, min(TABLE_ROWS, len(steps)))
    found = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    rows = [
        [number(x), *(number(one[x]) if x in one else '' for one in found)]
        for x in (steps[i] for i in picked.round().astype(int))
    ]
    return dict(columns=[x_label, *(line.name for line in lines)], rows=rows)
