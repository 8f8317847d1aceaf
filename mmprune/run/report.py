"""Dense against pruned, as data and as a page to read."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import nn

from ..atomic_file import write_whole
from ..cost_table import CostTable
from ..groups import PruneGroup, named_tensors
from ..plan import PruningPlan
from ..surgery import kept_index

Row = dict[str, float | int | None]

_COLUMNS = (
    ('params', 'params (M)', 1e-6, '.2f'),
    ('nonzero', 'non-zero (M)', 1e-6, '.2f'),
    ('macs', 'MACs (G)', 1e-9, '.2f'),
    ('checkpoint_mb', 'checkpoint (MB)', 1, '.1f'),
    ('latency_ms', 'latency (ms)', 1, '.0f'),
)


def group_rows(plan: PruningPlan, groups: list[PruneGroup]) -> list[dict]:
    """Returns one row per group: its units, how many stay, and why dense."""
    unscored = plan.provenance.get('unscored', {})
    rows = []
    for group in groups:
        kept = len(plan.keep.get(group.name, range(group.size)))
        rows.append(
            dict(
                group=group.name,
                granularity=group.granularity,
                units=group.size,
                kept=kept,
                sparsity=1 - kept / group.size,
                dense_because=group.dense or unscored.get(group.name, ''),
            )
        )
    return rows


def kind_rows(groups: list[dict]) -> list[dict]:
    """Returns one row per granularity: groups, units, kept units."""
    kinds: dict[str, dict] = {}
    for row in groups:
        kind = kinds.setdefault(
            row['granularity'],
            dict(
                granularity=row['granularity'],
                groups=0,
                dense_groups=0,
                units=0,
                kept=0,
            ),
        )
        if row['dense_because']:
            kind['dense_groups'] += 1
            continue
        kind['groups'] += 1
        kind['units'] += row['units']
        kind['kept'] += row['kept']
    return list(kinds.values())


def cut_table(
    costs: CostTable, plan: PruningPlan, groups: list[PruneGroup]
) -> str:
    """Returns a Markdown table of what a plan cuts, a row per kind.

    What two kinds share, as the matrix between them, counts for both; the
    last row is all of them together.

    Args:
        costs: Of the dense model.
        plan: What it would lose.
        groups: All groups, dense ones too.
    """
    rows = []
    for kind in kind_rows(group_rows(plan, groups)):
        name, units = kind['granularity'], kind['units']
        own = tuple(g for g in plan.groups if g.granularity == name)
        part = PruningPlan(own, {g.name: plan.keep[g.name] for g in own})
        lost = units - kind['kept']
        rows.append(
            dict(
                kind=name,
                groups=kind['groups'],
                kept_dense=kind['dense_groups'],
                units=units,
                removed=f'{lost} ({lost / max(units, 1):.1%})',
                **_saved(costs, part),
            )
        )
    blank = dict.fromkeys(('groups', 'kept_dense', 'units', 'removed'), '')
    rows.append(dict(kind='all', **blank, **_saved(costs, plan)))
    return _table(rows, tuple(rows[0]))


def _saved(costs: CostTable, plan: PruningPlan) -> dict[str, str]:
    index, saved = kept_index(plan, costs.shapes), {}
    for unit, scale, ending in (('params', 1e-6, 'M'), ('macs', 1e-9, 'G')):
        dense, left = costs.total(unit), costs.total(unit, index)
        saved[f'{unit} removed'] = (
            f'{(dense - left) * scale:.3g} {ending} '
            f'({1 - left / max(dense, 1):.1%})'
        )
    return saved


def unit_tables(
    dense: nn.Module,
    model: nn.Module,
    plan: PruningPlan,
    groups: list[PruneGroup],
    reason: Callable[[str], str],
) -> dict[str, list[dict]]:
    """Returns the tables about a model that lost units, by name.

    Args:
        dense: The dense model.
        model: The pruned model.
        plan: What it lost.
        groups: All groups, dense ones too.
        reason: Returns why a tensor is not covered.
    """
    shapes = {n: tuple(t.shape) for n, t in named_tensors(dense).items()}
    rows = group_rows(plan, groups)
    return dict(
        groups=rows,
        kinds=kind_rows(rows),
        uncovered=uncovered_rows(dense, groups, reason),
        modules=module_rows(shapes, model),
        tensors=tensor_rows(shapes, model),
    )


def weight_tables(
    shapes: dict[str, tuple[int, ...]], model: nn.Module
) -> dict[str, list[dict]]:
    """Returns the tables about a model with zeros, by name.

    Args:
        shapes: Tensor name -> shape in the dense model.
        model: The pruned model.
    """
    return dict(weights=module_rows(shapes, model))


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


def module_rows(
    dense: dict[str, tuple[int, ...]], model: nn.Module
) -> list[dict]:
    """Returns one row per tensor that lost elements or has zeros.

    Args:
        dense: Tensor name -> shape in the dense model.
        model: The pruned model.
    """
    rows = []
    for name, tensor in named_tensors(model).items():
        before = 1
        for size in dense[name]:
            before *= size
        nonzero = int(tensor.count_nonzero()) if tensor.ndim > 1 else None
        left = tensor.numel() if nonzero is None else nonzero
        if left < before and tensor.ndim > 1:
            rows.append(
                dict(
                    tensor=name,
                    dense_shape=list(dense[name]),
                    shape=list(tensor.shape),
                    sparsity=1 - left / before,
                )
            )
    return rows


def tensor_rows(
    dense: dict[str, tuple[int, ...]], model: nn.Module
) -> list[dict]:
    """Returns one row per parameter: its elements before and after.

    Args:
        dense: Tensor name -> shape in the dense model.
        model: The pruned model; zeros of it count as left.
    """
    return [
        dict(tensor=name, params=math.prod(dense[name]), left=p.numel())
        for name, p in model.named_parameters()
    ]


def uncovered_rows(
    model: nn.Module,
    groups: list[PruneGroup],
    reason: Callable[[str], str],
) -> list[dict]:
    """Returns the matrices that no group covers along their outputs.

    Args:
        model: The dense model.
        groups: All groups, dense ones too.
        reason: Returns why a tensor is not covered.
    """
    covered = {s.tensor for g in groups for s in g.producers}
    return [
        dict(tensor=name, params=tensor.numel(), dense_because=reason(name))
        for name, tensor in model.named_parameters()
        if tensor.ndim > 1 and name not in covered
    ]


def save_json(report: dict, path: Path) -> None:
    """Writes the report as JSON, whole or not at all."""
    text = json.dumps(report, indent=1, default=str) + '\n'
    write_whole(path, text.encode())


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
    heads = [c[1] for c in shown] + [n.rpartition('/')[2] for n in names]
    lines = [
        '| model | ' + ' | '.join(heads) + ' |',
        '|---' * (len(heads) + 1) + '|',
    ]
    dense, metrics = models['dense'], metrics or {}
    for name in dict.fromkeys([*models, *metrics]):
        row, cells = models.get(name, {}), []
        for key, _, scale, form in shown:
            value, base = row.get(key), dense.get(key)
            if value is None:
                cells.append('-')
                continue
            cell = format(value * scale, form)
            if name != 'dense' and base:
                cell += f' ({value / base:.0%})'
            cells.append(cell)
        found = metrics.get(name, {})
        cells += [f'{found[n]:.4g}' if n in found else '-' for n in names]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def markdown(report: dict) -> str:
    """Returns the report as a Markdown page."""
    parts = [
        f'# {report["title"]}',
        summary_table(report['models']),
        report['notes'],
    ]
    variants = variants_of(report)
    for kind in ('units', 'weights'):
        for name, tables in variants.items():
            if tables['removes'] == kind:
                parts += _sections(name, tables)
    return '\n\n'.join(p for p in parts if p) + '\n'


def _sections(name: str, tables: dict) -> list[str]:
    """Returns the parts of the page about one variant."""
    parts = []
    if tables.get('kinds'):
        columns = ('granularity', 'groups', 'dense_groups', 'units', 'kept')
        parts.append(f'## Units removed ({name})')
        parts.append(_table(tables['kinds'], columns))
    groups = tables.get('groups') or []
    if groups:
        columns = ('group', 'granularity', 'units', 'kept', 'sparsity')
        pruned = [r for r in groups if not r['dense_because']]
        parts += ['## Groups', _table(pruned, columns)]
    dense = [r for r in groups if r['dense_because']]
    uncovered = tables.get('uncovered')
    if dense or uncovered:
        parts.append('## Kept dense, and why')
    if dense:
        parts.append(_table(dense, ('group', 'units', 'dense_because')))
    if uncovered:
        columns = ('tensor', 'params', 'dense_because')
        parts.append(_table(uncovered, columns))
    if tables.get('weights'):
        columns = ('tensor', 'dense_shape', 'sparsity')
        parts.append(f'## Sparsity per weight ({name})')
        parts.append(_table(tables['weights'], columns))
    return parts


def _table(rows: list[dict], columns: tuple[str, ...]) -> str:
    lines = ['| ' + ' | '.join(c.replace('_', ' ') for c in columns) + ' |']
    lines.append('|---' * len(columns) + '|')
    for row in rows:
        cells = (row[c] for c in columns)
        cells = (
            f'{c:.1%}' if isinstance(c, float) else f'{c}'.replace('|', '/')
            for c in cells
        )
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)
