"""How long a pruned model takes to come back, beside the dense one.

VAD-tiny: built and loaded dense, against rebuilt from the pruned checkpoint
alone. ResNet-50 of torchvision: the same, beside the two ways that
torch-pruning documents, a pickle of the whole model and a state dict with
the pruning history replayed. All take turns in one process, files are in the
page cache.

    python benchmarks/vad_reload.py [--rounds 7]

Exits with 1 if a reloaded model is not bit-identical to the saved one.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
import torch_pruning
from rich.progress import track
from torch import Tensor, nn
from torchvision.models import resnet50

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'projects')]

from vad_latency import CONFIG, add_model_args, dense_vad  # noqa: E402

from mmprune.checkpoints.reading import load_checkpoint_file  # noqa: E402
from mmprune.checkpoints.unfilled import unfilled  # noqa: E402
from mmprune.cost import count_params  # noqa: E402
from mmprune.discovery import discovered_groups  # noqa: E402
from mmprune.models import load_model, load_weights  # noqa: E402
from mmprune.plan import PruningPlan  # noqa: E402
from mmprune.pruners import StructuredPruner  # noqa: E402
from mmprune.run import folder as run_folder  # noqa: E402
from mmprune.run import workflow  # noqa: E402
from mmprune.run.cli import fail_in_one_sentence, load_config  # noqa: E402
from mmprune.run.options import PruningOptions  # noqa: E402
from mmprune.surgery import apply_plan  # noqa: E402

IMAGE = torch.linspace(-1, 1, 3 * 64 * 64).sin().view(1, 3, 64, 64)


@dataclass
class Way:
    """One way to bring a model back.

    Attributes:
        name: How the table calls it.
        load: Returns the model.
        saved: State dict that it must have.
        times: CPU seconds of each load.
        identical: Whether every load gave the very same tensors.
    """

    name: str
    load: Callable[[], nn.Module]
    saved: dict[str, Tensor]
    files: tuple[Path, ...]
    times: list[float] = field(default_factory=list)
    identical: bool = True

    def once(self, timed: bool) -> None:
        """Loads once and looks at the result."""
        gc.collect()
        start = time.process_time()
        model = self.load()
        seconds = time.process_time() - start
        if timed:
            self.times.append(seconds)
        found = model.state_dict()
        self.identical &= found.keys() == self.saved.keys() and all(
            torch.equal(found[k], v) for k, v in self.saved.items()
        )


def vad_ways(args: argparse.Namespace, folder: Path) -> list[Way]:
    """Returns VAD-tiny dense, and pruned to half of its MACs."""
    cfg = load_config(str(CONFIG))
    dense, _ = dense_vad(args)
    weights = {k: v.clone() for k, v in dense.state_dict().items()}
    plain = folder / 'dense.pth'
    torch.save(dict(meta={}, state_dict=weights), plain)
    options = PruningOptions(
        sparsity=0.5, target='macs', mode='structured', latency_runs=0
    )
    result = workflow.prune(cfg, dense, options)
    pruned = run_folder.write(
        result.models, result.plans, result.report, cfg, {}, folder
    )
    pruned = pruned['vad_structured_pruned.pth']
    return [
        Way(
            'VAD-tiny, dense',
            lambda: load_model(cfg, plain),
            weights,
            (plain,),
        ),
        Way(
            'VAD-tiny, half the MACs',
            lambda: load_model(cfg, pruned),
            result.models['structured'].state_dict(),
            (pruned,),
        ),
    ]


def resnet_ways(folder: Path) -> list[Way]:
    """Returns ResNet-50 dense and with half of all channels, three ways."""
    torch.manual_seed(0)
    dense = resnet50().eval()
    weights = dense.state_dict()
    plain = folder / 'resnet50.pth'
    torch.save(weights, plain)

    def load_dense() -> nn.Module:
        with unfilled():
            model = resnet50()
        load_weights(model, load_checkpoint_file(plain), plain)
        return model.eval()

    return [
        Way('ResNet-50, dense', load_dense, weights, (plain,)),
        _ours(dense, folder),
        *_torch_prunings(dense.state_dict(), folder),
    ]


def _ours(dense: nn.Module, folder: Path) -> Way:
    groups = list(discovered_groups(dense, lambda model: model(IMAGE)))
    plan = StructuredPruner(0.5, scope='layer')(dense, groups)
    model = resnet50().eval()
    model.load_state_dict(dense.state_dict())
    apply_plan(model, plan)
    weights = model.state_dict()
    path = folder / 'resnet50_pruned.pth'
    meta = dict(pruning_plan=plan.to_dict())
    torch.save(dict(meta=meta, state_dict=weights), path)

    def load() -> nn.Module:
        checkpoint = load_checkpoint_file(path)
        with unfilled():
            model = resnet50()
            apply_plan(model, PruningPlan.from_checkpoint(checkpoint))
        load_weights(model, checkpoint, path)
        return model.eval()

    return Way('ResNet-50, half: plan', load, weights, (path,))


def _torch_prunings(dense: dict[str, Tensor], folder: Path) -> list[Way]:
    model = resnet50().eval()
    model.load_state_dict(dense)
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        IMAGE,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[model.fc],
    )
    pruner.step()
    model.zero_grad()
    weights = model.state_dict()
    whole = folder / 'tp_model.pth'
    torch.save(model, whole)
    replayed = folder / 'tp_history.pth'
    torch.save(
        dict(state_dict=weights, history=pruner.pruning_history()), replayed
    )

    def load_whole() -> nn.Module:
        # Runs whatever code the file names: its documented way.
        return torch.load(whole, weights_only=False).eval()

    def load_replayed() -> nn.Module:
        checkpoint = torch.load(replayed)
        model = resnet50().eval()
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(model, IMAGE)
        graph.load_pruning_history(checkpoint['history'])
        model.load_state_dict(checkpoint['state_dict'])
        return model.eval()

    return [
        Way(
            'ResNet-50, half: torch-pruning, pickle of the model',
            load_whole,
            weights,
            (whole,),
        ),
        Way(
            'ResNet-50, half: torch-pruning, history replayed',
            load_replayed,
            weights,
            (replayed,),
        ),
    ]


def table(ways: list[Way]) -> str:
    """Returns the comparison as Markdown."""
    lines = [
        '| way | params (M) | file (MB) | CPU (s) | min - max (s) | '
        'of dense | bit-identical |',
        '|---|---|---|---|---|---|---|',
    ]
    for way in ways:
        if way.name.endswith('dense'):
            dense = statistics.median(way.times)
        median = statistics.median(way.times)
        size = sum(p.stat().st_size for p in way.files) / 1e6
        lines.append(
            f'| {way.name} | {count_params(way.load()) / 1e6:.2f} | '
            f'{size:.1f} | {median:.3f} | {min(way.times):.3f} - '
            f'{max(way.times):.3f} | {median / dense:.0%} | '
            f'{"yes" if way.identical else "NO"} |'
        )
    return '\n'.join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--rounds', type=int, default=7, help='timed loads per way')
    add_model_args(parser)
    return parser.parse_args(argv)


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        ways = vad_ways(args, Path(folder)) + resnet_ways(Path(folder))
        for number in track(range(args.rounds + 1), transient=True):
            for way in ways:
                way.once(timed=number > 0)
        print(
            f'{args.rounds} interleaved loads, '
            f'{torch.get_num_threads()} threads, PyTorch '
            f'{torch.__version__}, torch-pruning '
            f'{version("torch-pruning")}\n'
        )
        print(table(ways))
    return int(not all(way.identical for way in ways))


if __name__ == '__main__':
    sys.exit(main())
