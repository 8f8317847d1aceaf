"""Dense against pruned, as a page to read."""

from collections.abc import Iterable, Mapping, Sequence

Row = dict[str, float | int | None]

_COLUMNS = (
    ('params', 'params (M)', 1e-6, '.2f'),
    ('nonzero', 'non-zero (M)', 1e-6, '.2f'),
    ('macs', 'MACs (G)', 1e-9, '.2f'),
    ('checkpoint_mb', 'checkpoint (MB)', 1, '.1f'),
    ('latency_ms', 'latency (ms)', 1, '.0f'),
)


def variants_of(report: dict) -> dict[str, dict]:
    """Returns the variants of a report, name -> what it has about each.

    Each has ``removes`` (``units`` or ``weights``) and the tables of its
    kind. Reports that were written before variants had names are read, too.
    """
    if 'variants' in report:
        return report['variants']
    found = {}
    names = ('groups', 'kinds', 'uncovered', 'modules', 'tensors')
    tables = {name: report[name] for name in names if name in report}
    if tables:
        found['structured'] = dict(removes='units', **tables)
    if 'weights' in report:
        found['unstructured'] = dict(
            removes='weights', weights=report['weights']
        )
    return found


def summary_table(
    models: dict[str, Row],
    metrics: Mapping[str, Mapping] | None = None,
    names: Sequence[str] = (),
) -> str:
    """Returns a Markdown table: a row per model, ratios to the dense one.

    Args:
        models: Name -> what it costs.
        metrics: Name -> metrics; of those without a row as well.
        names: Of the metrics to show.
    """
    shown = [c for c in _COLUMNS if any(r.get(c[0]) for r in models.values())]
    dense, metrics = models['dense'], metrics or {}
    rows = []
    for name in dict.fromkeys([*models, *metrics]):
        row, cells = models.get(name, {}), [name]
        for key, _, scale, form in shown:
            value, base = row.get(key), dense.get(key)
            cell = '-' if value is None else format(value * scale, form)
            if value is not None and name != 'dense' and base:
                cell += f' ({value / base:.0%})'
            cells.append(cell)
        found = metrics.get(name, {})
        cells += [f'{found[n]:.4g}' if n in found else '-' for n in names]
        rows.append(cells)
    heads = [c[1] for c in shown] + [n.rpartition('/')[2] for n in names]
    return markdown_table(['model', *heads], rows)


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> str:
    """Returns a Markdown table; cells are texts, numbers or fractions."""
    lines = [columns, *([_cell(cell) for cell in row] for row in rows)]
    lines = [f'| {" | ".join(line)} |' for line in lines]
    return '\n'.join([lines[0], '|---' * len(columns) + '|', *lines[1:]])


def markdown(report: dict) -> str:
    """Returns the report as a Markdown page."""
    parts = [
        f'# {report["title"]}',
        summary_table(report['models']),
        report['notes'],
    ]
    variants = variants_of(report).items()
    # Those that lost units first.
    for name, tables in sorted(variants, key=lambda v: v[1]['removes']):
        parts += _sections(name, tables)
    return '\n\n'.join(p for p in parts if p) + '\n'


def _sections(name: str, tables: dict) -> list[str]:
    """Returns the parts of the page about one variant."""
    groups = tables.get('groups') or []
    pruned = [row for row in groups if not row['dense_because']]
    dense = [row for row in groups if row['dense_because']]
    why = 'Kept dense, and why'
    shown = (
        (
            f'Units removed ({name})',
            tables.get('kinds'),
            ('granularity', 'groups', 'dense_groups', 'units', 'kept'),
        ),
        (
            'Groups',
            pruned,
            ('group', 'granularity', 'units', 'kept', 'sparsity'),
        ),
        (why, dense, ('group', 'units', 'dense_because')),
        (
            '' if dense else why,
            tables.get('uncovered'),
            ('tensor', 'params', 'dense_because'),
        ),
        (
            f'Sparsity per weight ({name})',
            tables.get('weights'),
            ('tensor', 'dense_shape', 'sparsity'),
        ),
    )
    parts = []
    for title, rows, columns in shown:
        if rows:
            heads = [column.replace('_', ' ') for column in columns]
            cells = [[row[column] for column in columns] for row in rows]
            parts += [f'## {title}'] * bool(title)
            parts.append(markdown_table(heads, cells))
    return parts


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f'{value:.1%}'
    return f'{value}'.replace('|', '/')
