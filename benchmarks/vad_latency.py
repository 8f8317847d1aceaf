"""How much faster VAD-tiny becomes on a CPU, dense and pruned in one run.

The models take turns, so that a slow moment of the machine hits all of them:
a round times dense, then each pruned one, and medians are over rounds.

    python benchmarks/vad_latency.py [--ratios 0.3 0.5 0.7] [--rounds 11]

Exits with 1 if the MACs miss their target by more than a percent.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from rich.progress import Progress, track

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'projects')]

from mmprune.cost import (  # noqa: E402
    count_macs,
    count_params,
    time_in_turns,
)
from mmprune.family import build_family, use_annotations  # noqa: E402
from mmprune.models import build_model, load_model  # noqa: E402
from mmprune.run import workflow  # noqa: E402
from mmprune.run.cli import fail_in_one_sentence, load_config  # noqa: E402
from mmprune.run.options import PruningOptions  # noqa: E402

CONFIG = ROOT / 'projects' / 'configs' / 'VAD' / 'VAD_tiny_stage_2.py'


@dataclass
class Timed:
    """One model of the comparison.

    Attributes:
        name: How the table calls it.
        params: Number of parameters.
        macs: Multiply-adds of one frame.
        forward: Runs one frame.
        times: Milliseconds of each round.
    """

    name: str
    params: int
    macs: int
    forward: Callable[[], Any]
    times: list[float] = field(default_factory=list)


def add_model_args(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose the weights of the dense model."""
    parser.add_argument(
        '--checkpoint', help='weights of VAD-tiny, instead of untrained ones'
    )
    parser.add_argument(
        '--shared',
        type=Path,
        default=os.environ.get('MMPRUNE_SHARED', ROOT.parent / 'shared'),
        help='folder that holds vad/golden, the reproducible weights',
    )


def dense_vad(args: argparse.Namespace) -> tuple[torch.nn.Module, str]:
    """Returns the dense model in eval mode, and where its weights are from.

    Without a checkpoint these are the weights of the golden set, and without
    the shared folder freshly initialised ones of a fixed seed.
    """
    cfg = load_config(str(CONFIG))
    if args.checkpoint:
        model = load_model(cfg, args.checkpoint)
        return model, f'checkpoint {Path(args.checkpoint).name}'
    if (args.shared / 'vad' / 'golden').is_dir():
        from golden import golden_sets, golden_vad

        tag = golden_sets(args.shared, 'tiny')[0].tag
        return golden_vad(args.shared, 'tiny', tag), 'golden (untrained)'
    torch.manual_seed(0)
    model = build_model(cfg)
    # It would log every tensor.
    MMLogger.get_current_instance().setLevel('ERROR')
    model.init_weights()
    return model.eval(), 'init_weights() with seed 0 (untrained)'


def prepare(args: argparse.Namespace) -> tuple[list[Timed], str]:
    """Returns dense and pruned models, and where the weights are from."""
    cfg = load_config(str(CONFIG))
    dense, weights = dense_vad(args)
    if args.ann_file:
        use_annotations(cfg, args.ann_file)
    family = build_family(cfg)
    models = {'dense': dense}
    for ratio in track(args.ratios, 'pruning', transient=True):
        options = PruningOptions(
            sparsity=ratio,
            target='macs',
            mode='structured',
            round_to=args.round_to,
            prune_frozen=args.prune_frozen,
            latency_runs=0,
        )
        result = workflow.prune(cfg, dense, options)
        models[f'structured {ratio:g}'] = result.models['structured']
    timed = [
        Timed(
            name=name,
            params=count_params(model),
            macs=count_macs(model, family.single_frame)[''],
            forward=lambda model=model: family.single_frame(model),
        )
        for name, model in models.items()
    ]
    return timed, weights


def measure(models: list[Timed], rounds: int) -> None:
    """Times the models in turns."""
    forwards = {model.name: model.forward for model in models}
    with Progress(transient=True) as bar:
        task = bar.add_task('timing', total=rounds + 1)
        times = time_in_turns(
            forwards, runs=rounds, tick=lambda: bar.advance(task)
        )
    for model in models:
        model.times = times[model.name]


def table(models: list[Timed]) -> str:
    """Returns the comparison as Markdown."""
    lines = [
        '| model | params (M) | MACs (G) | of dense | median (ms) | '
        'quartiles (ms) | dense / this |',
        '|---|---|---|---|---|---|---|',
    ]
    dense = models[0]
    for model in models:
        low, median, high = statistics.quantiles(model.times, n=4)
        faster = statistics.median(dense.times) / median
        lines.append(
            f'| {model.name} | {model.params / 1e6:.2f} | '
            f'{model.macs / 1e9:.2f} | {model.macs / dense.macs:.1%} | '
            f'{median:.0f} | {low:.0f} - {high:.0f} | {faster:.2f}x |'
        )
    return '\n'.join(lines)


def profile(models: list[Timed]) -> str:
    """Returns the operators that take the longest, per model."""
    parts = []
    for model in models:
        with torch.profiler.profile() as profiler:
            model.forward()
        averages = profiler.key_averages()
        rows = averages.table(sort_by='self_cpu_time_total', row_limit=15)
        parts.append(f'{model.name}\n{rows}')
    return '\n'.join(parts)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--ratios', type=float, nargs='+', default=[0.3, 0.5, 0.7])
    add('--rounds', type=int, default=11, help='timed frames per model')
    add('--round-to', type=int, help='kept widths: a multiple')
    add('--prune-frozen', action='store_true', help='also stem and stage 1')
    add('--ann-file', help='info file of the keyframe, instead of a drawing')
    add('--profile', action='store_true', help='print the slowest operators')
    add_model_args(parser)
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error(f'--rounds must be at least 2, found {args.rounds}')
    return args


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    args = parse_args(argv)
    models, weights = prepare(args)
    measure(models, args.rounds)
    load = os.getloadavg()[0]
    print(
        f'VAD-tiny, 6 cameras at 384x640, one frame; weights: {weights}; '
        f'{args.rounds} interleaved rounds, {torch.get_num_threads()} '
        f'threads, PyTorch {torch.__version__}, load {load:.1f} at the end\n'
    )
    print(table(models), flush=True)
    if args.profile:
        print(profile(models))
    dense, *pruned = models
    missed = [
        model.name
        for model, ratio in zip(pruned, args.ratios, strict=True)
        if abs(1 - model.macs / dense.macs - ratio) > 0.01
    ]
    if missed:
        print(f'MACs off by more than 1%: {", ".join(missed)}')
    return int(bool(missed))


if __name__ == '__main__':
    sys.exit(main())
