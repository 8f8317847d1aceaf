"""What a report says in numbers: the tables and the head of the page."""

import math
import re
from collections.abc import Mapping
from typing import Any

from .charts import number

COSTS = (
    ('params', 'Parameters'),
    ('nonzero', 'Non-zero'),
    ('macs', 'MACs'),
    ('checkpoint_mb', 'Checkpoint'),
    ('latency_ms', 'Latency'),
)
SHOWN_METRICS = 24
# The head shows the costs of the first line whose first cost a variant has
# less of: smaller tensors, smaller numbers in them, zeros. A latency says
# nothing about zeros, which are multiplied like any number.
_HEADS = (
    ('params', 'macs', 'latency_ms'),
    ('checkpoint_mb', 'latency_ms'),
    ('nonzero',),
)
# A relative change below this is called none.
_SAME = 0.0005
_LOWER = re.compile(
    'l1|l2|col|collision|mr|miss|error|err|perplexity|ppl|mae|mse|rmse|wer|'
    'mate|mase|maoe|mave|maae|chamfer|latency|.*ade|.*fde|.*loss'
)
_HIGHER = re.compile(
    'm?ap|nds|acc|accuracy|top[15]|epa|f1|recall|precision|m?iou|auc|mcc|'
    'bleu|score'
)


def better(name: str, stated: Mapping[str, str]) -> str:
    """Returns whether ``'higher'`` or ``'lower'`` is better, '' if unknown.

    What the report has stated itself comes before what the name tells.
    """
    if name in stated:
        return stated[name]
    words = re.split(r'[^a-z0-9]+', name.lower())
    if any(_LOWER.fullmatch(word) for word in words):
        return 'lower'
    return 'higher' if any(_HIGHER.fullmatch(w) for w in words) else ''


def quantity(key: str, value: float) -> str:
    """Returns a cost with its unit, ``24.8 M`` or ``123 ms``."""
    if key == 'latency_ms':
        return f'{value:.3g} ms' if value < 1000 else f'{value / 1000:.3g} s'
    if key == 'checkpoint_mb':
        return f'{value:.1f} MB'
    for size, letter in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if abs(value) >= size:
            return f'{value / size:.3g} {letter}'
    return f'{value:.0f}'


def percent(share: float) -> str:
    """Returns a fraction as ``38 %``, with decimals where it is small."""
    share = abs(share) * 100
    digits = 0 if round(share, 1) >= 10 or share == 0 else 1
    return f'{share:.{digits}f} %'


def change(value: float, base: float, direction: str = '') -> dict:
    """Returns the change from a base as text and as a class of the page."""
    if not (math.isfinite(value) and math.isfinite(base)):
        return dict(text='', kind='')
    difference = value - base
    relative = difference / abs(base) if base else math.inf * difference
    if abs(difference) <= _SAME * abs(base):
        return dict(text='no change', kind='')
    sign = '+' if difference > 0 else '\N{MINUS SIGN}'
    size = percent(relative) if base else number(abs(difference))
    kind = ''
    if direction:
        rises = difference > 0
        kind = 'better' if rises == (direction == 'higher') else 'worse'
    return dict(text=f'{sign}{size}', kind=kind)


def _dense_first(models: Mapping) -> list[str]:
    return sorted(models, key=lambda name: name != 'dense')


def cost_rows(models: Mapping[str, Mapping]) -> dict:
    """Returns the table of costs: a row per model, beside the dense one."""
    shown = [c for c in COSTS if any(m.get(c[0]) for m in models.values())]
    dense = models.get('dense', {})
    rows = []
    for name in _dense_first(models):
        cells = []
        for key, _ in shown:
            value, base = models[name].get(key), dense.get(key)
            text = '' if value is None else quantity(key, value)
            # Of a cost that the dense model does not have, nothing is told.
            cell = _cell(text, value, base or None, name)
            if text and base:
                cell['share'] = min(1.0, value / base)
            cells.append(cell)
        rows.append(dict(name=name, cells=cells))
    return dict(columns=[label for _, label in shown], rows=rows)


def _cell(
    text: str, value: Any, base: Any, model: str, direction: str = ''
) -> dict:
    """What a table shows of a number, beside that of the dense model."""
    if not text:
        return dict(text='\N{EN DASH}')
    if model == 'dense' or not isinstance(base, int | float):
        return dict(text=text)
    return dict(text=text, change=change(value, base, direction))


def metric_rows(report: Mapping) -> dict | None:
    """Returns the table of metrics, or None where there are none."""
    metrics = report.get('metrics') or {}
    columns = _dense_first(metrics)
    names = list(dict.fromkeys(n for c in columns for n in metrics[c]))
    if not names:
        return None
    rows = []
    for name in names:
        direction = better(name, report.get('directions') or {})
        base = metrics.get('dense', {}).get(name)
        cells = []
        for column in columns:
            value = metrics[column].get(name)
            text = number(value) if isinstance(value, int | float) else ''
            cells.append(_cell(text, value, base, column, direction))
        rows.append(dict(name=name, direction=direction, cells=cells))
    return dict(columns=columns, rows=rows, shown=SHOWN_METRICS)


def main_metric(report: Mapping) -> str | None:
    """Returns the metric of the head: the stated one, or the first known."""
    table = metric_rows(report)
    if table is None:
        return None
    names = [row['name'] for row in table['rows']]
    if report.get('main_metric') in names:
        return report['main_metric']
    known = [row['name'] for row in table['rows'] if row['direction']]
    return (known or names)[0]


def tiles(report: Mapping) -> list[dict]:
    """Returns the numbers of the head: the costs of one variant.

    It is the first with fewer parameters than the dense model or, where none
    has, the first with a smaller checkpoint or with zeros.
    """
    models = report.get('models') or {}
    dense = models.get('dense', {})
    variants = {name: row for name, row in models.items() if name != 'dense'}
    for keys in _HEADS:
        for name, costs in variants.items():
            value, base = costs.get(keys[0]), dense.get(keys[0])
            if value and base and value < base * (1 - _SAME):
                tag = f'{name}: ' if len(variants) > 1 else ''
                found = (_tile(key, costs, dense, tag) for key in keys)
                return [tile for tile in found if tile]
    return []


def _tile(key: str, costs: Mapping, dense: Mapping, tag: str) -> dict | None:
    """Returns a cost beside the dense one, None if it was not measured."""
    value, base = costs.get(key), dense.get(key)
    if not value or not base:
        return None
    text = change(value, base)['text']
    if key == 'latency_ms':
        word = 'faster' if base >= value else 'slower'
        factor = max(base, value) / min(base, value)
        text = f'{factor:.2f}\N{MULTIPLICATION SIGN} {word}'
    from_to = f'{quantity(key, base)} \N{RIGHTWARDS ARROW} '
    return dict(
        label=dict(COSTS)[key],
        share=min(1.0, value / base),
        value=text,
        note=tag + from_to + quantity(key, value),
    )


def metric_tile(report: Mapping) -> dict | None:
    """Returns the main metric of each model, the dense one first."""
    name = main_metric(report)
    if name is None:
        return None
    table = metric_rows(report)
    row = next(r for r in table['rows'] if r['name'] == name)
    steps = [
        dict(model=column, **cell)
        for column, cell in zip(table['columns'], row['cells'], strict=True)
    ]
    return dict(label=name, direction=row['direction'], steps=steps)


def dense_reasons(report: Mapping) -> list[dict]:
    """Returns why parts stay dense: reason, number and names of them."""
    reasons: dict[str, list[dict]] = {}
    for row in (*report.get('groups', ()), *report.get('uncovered', ())):
        if row['dense_because']:
            reasons.setdefault(row['dense_because'], []).append(row)
    rows = []
    for reason, found in reasons.items():
        names = [row.get('group') or row['tensor'] for row in found]
        params = sum(row.get('params', 0) for row in found)
        text = quantity('params', params) if params else ''
        rows.append(dict(reason=reason, names=names, params=text))
    return sorted(rows, key=lambda row: -len(row['names']))
