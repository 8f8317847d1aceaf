"""Several models of one task in one table and one picture."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..atomic_file import save_json, write_whole
from ..checkpoints.reading import load_checkpoint_file
from ..cost import count_macs, count_nonzero, measure_latencies
from ..family import build_family
from ..models import build_model, loaded_model
from ..plan import checkpoint_plan
from ..quantization.models import float_config
from . import named_runs, report_html, training

JSON, PICTURE = 'final_report.json', 'final_report.png'
# How the report calls a model -> the name of its folder.
STEPS = {
    'Distilled Student (Baseline)': 'distilled_student',
    'Quantized Distilled Student': 'quantized_student',
    'Pruned Student': 'pruning_with_finetuning',
    'Pruned + Quantized Student (PTQ)': 'pruned_quantized',
    'Pruned + QKD-4bit (QAT)': 'pruned_qkd4bit',
}


@dataclass(frozen=True)
class Entry:
    """A model of the report.

    Args:
        name: How the report calls it.
        config: Config of the dense model, with its test data.
        checkpoint: Its weights: dense, pruned, quantized.
    """

    name: str
    config: str
    checkpoint: str


def report_newest(
    folder: Path, latency_runs: int = 20, log: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Compares the newest model of each step of the DistilBERT guides.

    Args:
        folder: Where the folders of the steps are, and the report goes.
        latency_runs: Timed runs of each model, 0 for none.
        log: Prints a line.

    Raises:
        ValueError: If there is no model.
    """
    entries = []
    for name, step in STEPS.items():
        found = named_runs.newest(folder, step)
        if found is None:
            log(f'left out: {name} ({folder / step}_* is not there)')
            continue
        checkpoint = found / named_runs.about(found)['checkpoint']
        entries.append(Entry(name, str(found / 'task.py'), str(checkpoint)))
    rows = final_report(entries, folder, latency_runs=latency_runs, log=log)
    for name in (JSON, PICTURE, 'report.html'):
        log(f'wrote {folder / name}')
    return rows


def final_report(
    entries: Sequence[Entry],
    folder: Path,
    *,
    latency_runs: int = 20,
    seq_len: int = 128,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Evaluates models, and writes JSON, picture and page about them.

    Args:
        entries: The models; the first is what others are compared with.
        folder: Where to write.
        latency_runs: Timed runs of each model, 0 for none.
        seq_len: Tokens of a sentence for multiply-adds, batch 1; fewer where
            a model has fewer places.
        log: Prints a line.

    Returns:
        A row per model, as in ``final_report.json``.

    Raises:
        ValueError: If there is no model.
    """
    if not entries:
        raise ValueError(
            f'there is nothing to report in {folder}; run the steps before'
        )
    folder.mkdir(parents=True, exist_ok=True)
    rows, models, runs = [], {}, {}
    for entry in entries:
        log(f'evaluating {entry.name}: {entry.checkpoint}')
        cfg = float_config(Config.fromfile(entry.config))[0]
        checkpoint = load_checkpoint_file(entry.checkpoint)
        model = loaded_model(cfg, checkpoint, entry.checkpoint)
        model.eval()
        runs[entry.name] = build_family(cfg).single_frame
        models[entry.name] = model
        rows.append(_row(entry, cfg, model, checkpoint, seq_len, folder))
    latencies = measure_latencies(
        {name: lambda name=name: runs[name](models[name]) for name in models},
        latency_runs,
    )
    for row in rows:
        row['latency_ms'] = latencies[row['name']]
        row['latency_runs'] = latency_runs
    text = json.dumps(dict(models=rows), indent=2, default=str) + '\n'
    write_whole(folder / JSON, text.encode())
    draw(rows, folder / PICTURE)
    save_json(_page(rows), folder / 'report.json')
    report_html.write(folder, [str(folder / PICTURE)])
    return rows


def _row(
    entry: Entry,
    cfg: Config,
    model: nn.Module,
    checkpoint: Mapping,
    seq_len: int,
    folder: Path,
) -> dict[str, Any]:
    place = folder / 'evaluation' / entry.name.replace(' ', '_')
    metrics = training.evaluate(cfg, Path(entry.checkpoint), place, 'none')
    name = cfg.get('main_metric') or next(iter(metrics))
    quantization = (checkpoint.get('meta') or {}).get('quantization')
    eight = quantization and quantization['scheme']['activations'] == 'int8'
    seq_len = min(seq_len, model.config.max_position_embeddings)
    macs = count_macs(model, lambda net: _one(net, seq_len))['']
    return dict(
        name=entry.name,
        path=str(entry.checkpoint),
        accuracy=metrics[name] / 100 if name.startswith('Acc') else None,
        metrics=metrics,
        n_eval=len(training.evaluated_data(cfg)),
        params_total=_weights(model),
        params_nonzero=None if quantization else count_nonzero(model),
        size_mb_on_disk=_megabytes(model, checkpoint, entry.checkpoint),
        size_mb_in_memory=_bytes(model) / 1e6,
        gmacs=macs / 1e9,
        gflops=2 * macs / 1e9,
        seq_len=seq_len,
        heads_kept_per_layer=_kept(checkpoint, cfg, 'head'),
        ffn_per_layer=_kept(checkpoint, cfg, 'neuron'),
        weight_bits=4 if quantization else 32,
        activation_bits=8 if eight else 32,
        threads=torch.get_num_threads(),
        seed=(cfg.get('randomness') or {}).get('seed'),
        time=time.strftime('%Y-%m-%d %H:%M:%S'),
    )


def _one(model: nn.Module, seq_len: int) -> Any:
    """Runs a text classifier on one sentence of so many tokens."""
    ids = torch.ones(1, seq_len, dtype=torch.long)
    return model(
        dict(input_ids=ids, attention_mask=torch.ones_like(ids)),
        mode='tensor',
    )


def _megabytes(model: nn.Module, checkpoint: Mapping, path: str) -> float:
    """Size of a file; of one of a training, without its optimizer."""
    if 'optimizer' in checkpoint:
        return _bytes(model) / 1e6
    return Path(path).stat().st_size / 1e6


def _bytes(model: nn.Module) -> int:
    return sum(
        t.numel() * t.element_size() for t in model.state_dict().values()
    )


def _weights(model: nn.Module) -> int:
    """Weights and biases, packed ones too."""
    total = sum(p.numel() for p in model.parameters())
    for module in model.modules():
        packed: Tensor | None = getattr(module, 'packed', None)
        if isinstance(packed, Tensor):
            bias = 0 if module.bias is None else module.out_features
            total += module.in_features * module.out_features + bias
    return total


def _kept(checkpoint: Mapping, cfg: Config, kind: str) -> list[int]:
    """Units of a kind that each layer has."""
    # Of the dense model: of a packed one adapters would not know the layers.
    groups = build_family(cfg).groups(build_model(cfg))
    keep = (checkpoint_plan(checkpoint) or {}).get('keep', {})
    return [
        len(keep.get(group.name, range(group.size)))
        for group in groups
        if group.granularity == kind
    ]


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws accuracy over GFLOPs; the area of a point is its size on disk.

    A line through a point is one standard error to both sides.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout='constrained')
    largest = max(row['size_mb_on_disk'] for row in rows)
    for number, row in enumerate(rows):
        few = row['weight_bits'] < 32
        axes.scatter(
            row['gflops'],
            row['accuracy'],
            s=60 + 900 * row['size_mb_on_disk'] / largest,
            marker='s' if few else 'o',
            alpha=0.6,
            color=f'C{number}',
            label=_label(row),
        )
        share = row['accuracy']
        axes.errorbar(
            row['gflops'],
            share,
            math.sqrt(share * (1 - share) / row['n_eval']),
            color=f'C{number}',
            alpha=0.4,
            zorder=0,
        )
    axes.set_xlabel(f'GFLOPs at {rows[0]["seq_len"]} tokens (2 per MAC)')
    axes.set_ylabel(f'accuracy on {rows[0]["n_eval"]} sentences')
    axes.margins(0.25)
    axes.grid(alpha=0.3)
    legend = axes.legend(
        title='circle 32 bits, square 4 bits; area: size on disk; '
        'line: a standard error to both sides',
        fontsize=8,
        title_fontsize=8,
        loc='upper center',
        bbox_to_anchor=(0.5, -0.13),
        ncols=1,
    )
    for handle in legend.legend_handles:
        handle.set_sizes([60])
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _label(row: Mapping[str, Any]) -> str:
    parts = [
        f'{row["name"]}: {row["accuracy"]:.3f}',
        f'{row["size_mb_on_disk"]:.1f} MB',
    ]
    if row['latency_ms']:
        parts.append(f'{row["latency_ms"]:.1f} ms')
    return ', '.join(parts)


def _page(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the HTML page shows."""
    names = ['dense', *(row['name'] for row in rows[1:])]
    costs = {
        name: dict(
            params=row['params_total'],
            macs=int(row['gmacs'] * 1e9),
            checkpoint_mb=row['size_mb_on_disk'],
            latency_ms=row['latency_ms'],
        )
        for name, row in zip(names, rows, strict=True)
    }
    count = rows[0]['n_eval']
    spread = 100 * max(row['accuracy'] * (1 - row['accuracy']) for row in rows)
    error = (spread / 100 / max(count, 1)) ** 0.5 * 100
    return dict(
        title=f'{len(rows)} models of one task',
        models=costs,
        metrics={n: r['metrics'] for n, r in zip(names, rows, strict=True)},
        notes=(
            f'"dense" is {rows[0]["name"]}. {count} sentences: one standard '
            f'error of an accuracy is up to {error:.1f} points. MACs for one '
            f'sentence of {rows[0]["seq_len"]} tokens; latency of one '
            f'sentence, {rows[0]["threads"]} threads, PyTorch '
            f'{torch.__version__}.'
        ),
        sections=[
            dict(
                title='Models',
                text='Units that each layer has, bits, and where the file is.',
                table=dict(
                    columns=[
                        'model',
                        'accuracy',
                        'GFLOPs',
                        'MB',
                        'latency (ms)',
                        'bits',
                        'heads',
                        'neurons',
                    ],
                    rows=[
                        [
                            row['name'],
                            round(row['accuracy'], 4),
                            round(row['gflops'], 4),
                            round(row['size_mb_on_disk'], 2),
                            round(row['latency_ms'] or 0, 2),
                            f'{row["weight_bits"]}/{row["activation_bits"]}',
                            ' '.join(map(str, row['heads_kept_per_layer'])),
                            ' '.join(map(str, row['ffn_per_layer'])),
                        ]
                        for row in rows
                    ],
                ),
            )
        ],
    )
