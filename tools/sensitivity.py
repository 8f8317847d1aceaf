"""Measures how much worse a model gets without the units of one group.

    python tools/sensitivity.py CONFIG CHECKPOINT --output-dir sensitivity

Every group loses its least important units alone, at several ratios; the
model is measured each time. sensitivity.json and sensitivity.png hold the
curves, and `tools/prune_and_retrain.py --sensitivity sensitivity.json` cuts
every group until all cost the same. Where the command is stopped, the same
command goes on.
"""

import copy
import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmprune.criteria import CRITERIA, ONLY_WEIGHTS  # noqa: E402
from mmprune.run.cli import (  # noqa: E402
    ProgressBar,
    fail_in_one_sentence,
    load_config,
    stoppable,
)
from mmprune.run.flags import (  # noqa: E402
    argument,
    check_values,
    option,
    read,
)
from mmprune.run.options import (  # noqa: E402
    PruningOptions,
    annotations,
    config_options,
    trust_checkpoint,
)

LOSS = 'loss'
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions:
    """What is measured, and where it goes."""

    config: str = argument('config of the dense model')
    checkpoint: str = argument('trained weights of the dense model')
    output_dir: str = option('./sensitivity', 'where JSON and plot go')
    force: bool = option(False, 'measure anew what is there of another run')
    ratios: tuple[float, ...] = option(
        (0.25, 0.5, 0.75),
        'fractions of the units of a group to remove',
        nargs='+',
        type=float,
        action='store',
    )
    importance: str = option(
        'l1',
        'which units of a group go first',
        choices=tuple(k for k in CRITERIA if k not in ONLY_WEIGHTS),
    )
    quality: str = option(
        LOSS,
        "what is measured: the loss on batches of the config's training "
        'data, or the name of a metric of its test_evaluator',
    )
    lower_is_better: bool = option(False, 'of a metric: an error, not a score')
    protect: tuple[str, ...] = option(
        (),
        'groups that are left out; may be repeated',
        action='append',
        metavar='REGEX',
    )
    prune_frozen: bool = option(
        False, 'the stem and stages that training freezes, too'
    )
    device: str = option('cpu', 'where to measure: cpu or cuda[:N]')
    ann_file: str | None = annotations()
    trust_checkpoint: bool = trust_checkpoint()
    cfg_options: tuple[str, ...] = config_options()

    def __post_init__(self) -> None:
        check_values(self)
        wrong = [r for r in self.ratios if not 0 < r < 1]
        if wrong or not self.ratios:
            raise ValueError(
                '--ratios are fractions between 0 and 1, found '
                f'{", ".join(map(str, wrong)) or "none"}; give some as 0.25 '
                '0.5 0.75'
            )

    def pruning(self) -> PruningOptions:
        """Returns the same as options of a pruning."""
        return PruningOptions(
            mode='structured',
            importance=self.importance,
            protect=self.protect,
            prune_frozen=self.prune_frozen,
            device=self.device,
            ann_file=self.ann_file,
            trust_checkpoint=self.trust_checkpoint,
        )

    def asked(self) -> dict[str, Any]:
        """Returns what decides on the numbers, as the file keeps it."""
        names = ('config', 'checkpoint', 'quality', 'lower_is_better')
        lists = ('protect', 'cfg_options')
        return {name: getattr(self, name) for name in names} | {
            name: list(getattr(self, name)) for name in lists
        }


def quality_of(options: SensitivityOptions, cfg: Any, family: Any) -> Callable:
    """Returns what measures a model."""
    import torch

    from mmprune.errors import blame
    from mmprune.run import training

    if options.quality == LOSS:
        with blame('the batches of the loss cannot be read'):
            batches = list(family.batches())

        def loss(model: Any) -> float:
            with torch.no_grad():
                losses = [float(family.loss(model, b)) for b in batches]
            return math.fsum(losses) / len(losses)

        return loss
    if cfg.get('test_evaluator') is None:
        raise ValueError(
            f'--quality {options.quality} is a metric, and {cfg.filename} '
            'has no test_evaluator; give --quality loss'
        )
    problem = training.data_problem(cfg, 'test_dataloader')
    if problem:
        raise ValueError(f'--quality {options.quality}: {problem}')
    plain = copy.deepcopy(cfg)
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        plain.pop(key, None)
    plain.pop('param_scheduler', None)
    plain.work_dir = str(Path(options.output_dir) / 'evaluation')

    def metric(model: Any) -> float:
        found = training.runner_for(plain, model).test()
        if options.quality not in found:
            raise ValueError(
                f'the test measures {", ".join(found)}, not '
                f'{options.quality!r}; give --quality one of these'
            )
        return float(found[options.quality])

    return metric


def masked(model: Any, group: Any, score: Any, ratio: float) -> Any:
    """Returns a copy of a model without the lowest units of a group."""
    from mmprune.allocation import num_removed
    from mmprune.masks import mask_plan
    from mmprune.plan import PruningPlan

    count = min(num_removed(ratio, group.size), group.size - 1)
    keep = score.argsort(stable=True)[count:].sort().values.tolist()
    copied = copy.deepcopy(model)
    mask_plan(copied, PruningPlan((group,), {group.name: keep}))
    return copied


def measure(options: SensitivityOptions, path: Path) -> dict[str, Any]:
    """Measures what the file lacks; writes it after each number."""
    from mmprune.atomic_file import save_json
    from mmprune.checkpoints.reading import trust_checkpoints
    from mmprune.pruners import StructuredPruner
    from mmprune.run import workflow
    from mmprune.run.launch import check_device
    from mmprune.run.variants import calibration_data

    pruning = options.pruning()
    check_device(options.device)
    trust_checkpoints(options.trust_checkpoint)
    cfg = load_config(options.config, options.cfg_options)
    pruner = StructuredPruner(0.5, pruning.criterion(), scope='layer')
    found = before(options, path, repr(pruner.importance))
    model, _ = workflow.load_dense(cfg, Path(options.checkpoint), pruning)
    dense = workflow.find_dense(cfg, model, pruning)
    quality = quality_of(options, cfg, dense.family)
    groups = [g for g in dense.groups if not g.dense and g.size > 1]
    data = calibration_data(pruner, dense.family)
    stats = pruner.calibrate(model, groups, **data)
    groups, scores = pruner.score(groups, stats)
    if 'dense' not in found:
        found['dense'] = quality(model)
        save_json(found, path)
    missing = [
        (group, ratio)
        for group in groups
        for ratio in sorted(set(options.ratios))
        if f'{ratio:g}' not in _curve(found, group)
    ]
    with ProgressBar(len(missing), timed=True) as bar:
        for number, (group, ratio) in enumerate(missing, 1):
            small = masked(model, group, scores[group.name], ratio)
            _curve(found, group)[f'{ratio:g}'] = quality(small)
            save_json(found, path)
            bar.reach(number, f'{group.name} without {ratio:.0%}')
    return found


def before(options: SensitivityOptions, path: Path, importance: str) -> dict:
    """Returns what an earlier, stopped run measured, or a new beginning.

    Raises:
        ValueError: If the file there is of another run.
    """
    from mmprune.errors import blame

    new = dict(
        asked=options.asked(),
        importance=importance,
        higher_is_better=options.quality != LOSS
        and not options.lower_is_better,
        groups={},
    )
    if options.force or not path.is_file():
        return new
    with blame(f'{path} cannot be read'):
        found = json.loads(path.read_text())
        same = all(found[k] == new[k] for k in ('asked', 'importance'))
    if not same:
        raise ValueError(
            f'{path} is of another run; choose another --output-dir, or '
            'replace it with --force'
        )
    return found


def _curve(found: dict, group: Any) -> dict[str, float]:
    about = dict(granularity=group.granularity, units=group.size, quality={})
    return found['groups'].setdefault(group.name, about)['quality']


def draw(found: dict, path: Path) -> None:
    """Draws a line per group; those that cost the most are named."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from mmprune.atomic_file import write_whole

    figure = Figure(figsize=(8, 5), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, name in enumerate(by_cost(found)):
        points = found['groups'][name]['quality']
        ratios = sorted(points, key=float)
        axes.plot(
            [0, *map(float, ratios)],
            [found['dense'], *(points[r] for r in ratios)],
            marker='.',
            color=f'C{place}' if place < _SHOWN else '0.8',
            zorder=2 if place < _SHOWN else 1,
            label=name if place < _SHOWN else None,
        )
    axes.set_xlabel("fraction of a group's units that is gone")
    axes.set_ylabel(found['asked']['quality'])
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    stream = io.BytesIO()
    figure.savefig(stream, format='png')
    write_whole(path, stream.getvalue())


def by_cost(found: dict) -> list[str]:
    """Returns the groups, those that cost the most first."""
    sign = -1 if found['higher_is_better'] else 1
    cost = {
        name: max(sign * (v - found['dense']) for v in g['quality'].values())
        for name, g in found['groups'].items()
    }
    return sorted(cost, key=cost.get, reverse=True)


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    (options,) = read(
        'Measure what each group of units is worth.',
        (SensitivityOptions,),
        argv,
    )
    path = Path(options.output_dir) / 'sensitivity.json'
    with stoppable(lambda: 'what was measured is kept; the same command '
                   'goes on'):  # fmt: skip
        found = measure(options, path)
    plot = path.with_suffix('.png')
    draw(found, plot)
    names = by_cost(found)
    print(
        f'{options.quality} of the dense model: {found["dense"]:.4g}; '
        f'{len(names)} groups measured, the most sensitive: '
        f'{", ".join(names[:3])}'
    )
    print(f'in {path} and {plot}')
    words = ['python tools/prune_and_retrain.py', options.config]
    words += [options.checkpoint, '--mode structured --importance']
    print(f'next: {" ".join(words)} {options.importance} --sensitivity {path}')


if __name__ == '__main__':
    main()
