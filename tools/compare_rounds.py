"""Compares runs of iterative pruning: tables, curves, heat maps.

    python tools/compare_rounds.py work_dirs/a work_dirs/b --out work_dirs/ab

Writes comparison.json, comparison.md, accuracy.png, sparsity.png, and a
report.json whose sections tools/report.py shows.
"""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
# Keys of rounds.json in older runs -> today's.
RENAMED = dict(
    state='round', gone='pruned', going='decaying', shipped='exported'
)
sys.path.insert(0, str(ROOT))

from mmprune.atomic_file import save_json, write_whole  # noqa: E402
from mmprune.errors import blame  # noqa: E402
from mmprune.run.cli import fail_in_one_sentence  # noqa: E402
from mmprune.run.flags import argument, option, read  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What is compared."""

    runs: tuple[str, ...] = argument(
        'folders with rounds.json; NAME=FOLDER too', nargs='+'
    )
    out: str = option('work_dirs/comparison', 'where results go')
    metric: str = option('Acc@1', 'what is compared')
    lower_is_better: bool = option(False, 'as for a loss')


def read_rounds(path: Path) -> dict:
    """Returns a rounds.json; one of an older run with today's keys."""
    with blame(f'{path} cannot be read as JSON'):
        return json.loads(
            path.read_text(),
            object_hook=lambda entry: {
                RENAMED.get(key, key): value for key, value in entry.items()
            },
        )


def load(runs: list[str], metric: str) -> dict[str, dict]:
    """Returns name -> what a run has written.

    Raises:
        ValueError: If a folder holds no rounds with the metric.
    """
    found = {}
    for run in runs:
        name, equals, folder = run.partition('=')
        folder = Path(folder if equals else run)
        path = folder / 'rounds.json'
        if not path.is_file():
            raise ValueError(
                f'{folder} has no rounds.json; give the work directory of a '
                'run with IterativePruningLoop'
            )
        data = read_rounds(path)
        with blame(f'{path} is not what IterativePruningLoop writes'):
            rounds = data.get('rounds')
            known = rounds and list(rounds[0]['metrics'])
        if not known or metric not in known:
            raise ValueError(
                f'{path} has no metric {metric!r}, it has {known or "none"}'
            )
        found[name if equals else folder.name] = data
    if len(found) < len(runs):
        raise ValueError('two runs have one name; give them as NAME=FOLDER')
    return found


def curve(data: dict, metric: str) -> tuple[list[float], list[float]]:
    """Returns sparsity (mean over kinds) and metric of each round."""
    rounds = data['rounds']
    sparsity = [sum(e['met'].values()) / len(e['met']) for e in rounds]
    return sparsity, [e['metrics'].get(metric) for e in rounds]


def rounds_table(
    runs: dict[str, dict], metric: str, best_of: Callable = max
) -> dict:
    """Returns a row per round: the metric of each run, and the best run."""
    length = max(len(data['rounds']) for data in runs.values())
    rows = []
    for number in range(length):
        values = {
            name: data['rounds'][number]['metrics'].get(metric)
            for name, data in runs.items()
            if number < len(data['rounds'])
        }
        shown = [
            None if values.get(name) is None else round(values[name], 2)
            for name in runs
        ]
        best = best_of(
            (v for v in values.values() if v is not None), default=None
        )
        winners = [k for k, v in values.items() if v is not None and v == best]
        rows.append([number, *shown, ' = '.join(winners)])
    return dict(columns=['round', *runs, 'best'], rows=rows)


def cost_table(runs: dict[str, dict]) -> dict:
    """Returns a row per exported model: costs before and after removal."""
    columns = ['run', 'params', 'of dense', 'MACs', 'of dense']
    columns += ['latency ms', 'dense ms', 'masked = pruned to']
    rows = []
    for name, data in runs.items():
        if 'models' not in data:
            rows.append([name, *[None] * 7])
            continue
        dense = data['models']['dense']
        exported = [n for n in data['models'] if n != 'dense']
        for variant in exported:
            after = data['models'][variant]
            rows.append(
                [
                    name if len(exported) == 1 else f'{name}: {variant}',
                    after['params'],
                    f'{after["params"] / dense["params"]:.1%}',
                    after['macs'],
                    f'{after["macs"] / dense["macs"]:.1%}',
                    _two(after['latency_ms']),
                    _two(dense['latency_ms']),
                    f'{data["masked_difference"]:.1e}',
                ]
            )
    return dict(columns=columns, rows=rows)


def draw_accuracy(runs: dict[str, dict], metric: str, path: Path) -> None:
    """Draws the metric over rounds and over sparsity."""
    figure, axes = _pyplot().subplots(
        1, 2, figsize=(10, 4), layout='constrained'
    )
    for name, data in runs.items():
        sparsity, values = curve(data, metric)
        numbers = [entry['round'] for entry in data['rounds']]
        axes[0].plot(numbers, values, marker='o', label=name)
        percent = [100 * share for share in sparsity]
        axes[1].plot(percent, values, marker='o', label=name)
    axes[0].set(xlabel='round', ylabel=metric)
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[1].set(xlabel='units pruned (%)', ylabel=metric)
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend()
    save(figure, path)


def draw_sparsity(runs: dict[str, dict], path: Path) -> None:
    """Draws for each run and kind of unit a map of layers over rounds."""
    kinds = sorted(
        {k for data in runs.values() for k in data['rounds'][0]['met']}
    )
    figure, axes = _pyplot().subplots(
        len(runs),
        len(kinds),
        figsize=(4.2 * len(kinds), 2.8 * len(runs)),
        squeeze=False,
        layout='constrained',
    )
    image = None
    for row, (name, data) in zip(axes, runs.items(), strict=True):
        for axis, kind in zip(row, kinds, strict=True):
            grid = sparsity_map(data, kind)
            if not grid:
                axis.set_axis_off()
                continue
            image = axis.imshow(
                grid, vmin=0, vmax=1, aspect='auto', cmap='viridis'
            )
            axis.set(title=f'{name}: {kind}s', xlabel='round', ylabel='layer')
    figure.colorbar(image, ax=axes, label='pruned')
    save(figure, path)


def save(figure: 'Figure', path: Path) -> None:
    """Writes a figure and forgets it."""
    stream = io.BytesIO()
    figure.savefig(stream, dpi=120)
    _pyplot().close(figure)
    write_whole(path, stream.getvalue())


def sparsity_map(data: dict, kind: str) -> list[list[float]]:
    """Returns for each layer of a kind the part pruned in each round."""
    layers = data['rounds'][0]['layers']
    return [
        [
            e['layers'][i]['pruned'] / e['layers'][i]['units']
            for e in data['rounds']
        ]
        for i, layer in enumerate(layers)
        if layer['granularity'] == kind
    ]


def sections(
    runs: dict[str, dict], metric: str, best_of: Callable = max
) -> list[dict]:
    """Returns the comparison as sections of a report."""
    series = []
    for name, data in runs.items():
        numbers = [entry['round'] for entry in data['rounds']]
        series.append(dict(name=name, x=numbers, y=curve(data, metric)[1]))
    return [
        dict(
            title=f'{metric} of each round',
            table=rounds_table(runs, metric, best_of),
            series=series,
            x_label='round',
            y_label=metric,
        ),
        dict(title='Before and after removal', table=cost_table(runs)),
        dict(title='Accuracy and sparsity', image='accuracy.png'),
        dict(title='Sparsity per layer and kind', image='sparsity.png'),
    ]


def comparison(runs: dict[str, dict], metric: str, parts: list[dict]) -> dict:
    """Returns all that is compared, as data."""
    tables = [part['table'] for part in parts if 'table' in part]
    return dict(
        metric=metric,
        rounds=tables[0],
        costs=tables[1],
        runs={
            name: dict(
                options=data['options'],
                sparsity=curve(data, metric)[0],
                values=curve(data, metric)[1],
                layers={
                    kind: sparsity_map(data, kind)
                    for kind in data['rounds'][0]['met']
                },
            )
            for name, data in runs.items()
        },
    )


def markdown(table: dict) -> str:
    """Returns a table as Markdown."""
    lines = [table['columns'], ['---'] * len(table['columns']), *table['rows']]
    return '\n'.join(
        '| ' + ' | '.join('' if c is None else str(c) for c in line) + ' |'
        for line in lines
    )


def _two(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _pyplot() -> Any:
    """Returns matplotlib's pyplot, which --help does without."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    return pyplot


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    (args,) = read('Compare pruning runs.', (CompareOptions,), argv)
    from mmprune.run.folder import begun

    runs = load(args.runs, args.metric)
    best_of = min if args.lower_is_better else max
    out = Path(args.out)
    with begun(out), blame('their rounds.json cannot be compared'):
        parts = sections(runs, args.metric, best_of)
        found = comparison(runs, args.metric, parts)
        out.mkdir(parents=True, exist_ok=True)
        draw_accuracy(runs, args.metric, out / 'accuracy.png')
        draw_sparsity(runs, out / 'sparsity.png')
        page = '\n\n'.join(
            f'## {part["title"]}\n\n{markdown(part["table"])}'
            for part in parts
            if 'table' in part
        )
        text = f'# Pruning runs\n\n{page}\n'
        write_whole(out / 'comparison.md', text.encode())
        save_json(found, out / 'comparison.json')
        report = dict(title='Iterative pruning compared', sections=parts)
        save_json(report, out / 'report.json')
    print(page)
    print(f'\nwrote {out}/comparison.json, .md, accuracy.png, sparsity.png')


if __name__ == '__main__':
    main()
