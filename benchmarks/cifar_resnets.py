"""What criteria cost two real ResNets in accuracy, before and after a short
recovery, beside torch-pruning.

    python benchmarks/cifar_resnets.py --data ../shared/data

Trained ResNet-20 and ResNet-56 lose 30, 50 and 70 % of their multiply-adds by
every criterion, and by torch-pruning's magnitude and Taylor. Each pruned model
is tested as it is, after a short training, and after the same training with
distillation: same pictures, same order, same rates for all. Each number is
written to a file of its own in --work-dir and left alone when the command is
started again; a second one beside it goes --backwards, and both share the
work. Exits with 1 where torch-pruning's best one is ahead of the best of ours,
of all, by size or by gradient, by more than chance explains (McNemar's test
on the same pictures, 5 % for all comparisons together), or where a number is
missing.
"""

import argparse
import copy
import sys
from functools import cache, cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch_pruning as tp  # noqa: E402
from cifar_recovery import BATCH, Pictures, Recovery  # noqa: E402
from cifar_resnet_model import build_cifar_resnet  # noqa: E402
from cifar_table import (  # noqa: E402
    MATCHES,
    OURS,
    RATIOS,
    STAGES,
    TAYLOR,
    THEIRS,
    Store,
    behind,
    key,
    table,
    verdict,
)
from torch import Tensor, nn  # noqa: E402

from mmprune.calibration import calibrate  # noqa: E402
from mmprune.cost import cost_table, count_macs  # noqa: E402
from mmprune.criteria import criterion_config  # noqa: E402
from mmprune.pruners import StructuredPruner, check_groups  # noqa: E402
from mmprune.pruning import find_groups  # noqa: E402
from mmprune.registry import TASK_UTILS  # noqa: E402
from mmprune.run.progress import ProgressBar  # noqa: E402
from mmprune.surgery import apply_plan  # noqa: E402

WEIGHTS = {
    20: 'cifar10_resnet20-12fca82f.th',
    56: 'cifar10_resnet56-4bfd9763.th',
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        description='Compare criteria on real CIFAR-10 ResNets.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--data', type=Path, required=True, help='folder of data and weights')
    add('--work-dir', type=Path, default=Path('work_dirs/cifar_resnets'))
    add('--depths', type=int, nargs='+', default=[20, 56], choices=WEIGHTS)
    add('--iters', type=int, default=16, help='steps of a recovery')
    add('--lr', type=float, default=0.01, help='first rate; ends at 0')
    add('--stages', nargs='+', default=STAGES, choices=STAGES)
    add('--methods', nargs='+', help='only these rows, by the start of names')
    add('--backwards', action='store_true', help='start with the last number')
    add('--table', action='store_true', help='print what is there and stop')
    return parser.parse_args(argv)


def loss_of(model: nn.Module, batch: tuple) -> Tensor:
    """The model's own loss."""
    return model(*batch, mode='loss')['loss']


def picture(model: nn.Module) -> Tensor:
    """Runs a model on one picture."""
    return model(torch.zeros(1, 3, 32, 32))


def tested(model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Returns which test pictures are named right, and their percentage."""
    model.eval()
    pairs = zip(*(t.split(250) for t in data), strict=True)
    with torch.no_grad():
        right = torch.cat([model(x).argmax(1) == y for x, y in pairs])
    return dict(
        accuracy=100 * right.double().mean().item(),
        right=''.join(map(str, right.int().tolist())),
    )


class Dense:
    """A trained network, and what pruning it needs; read once."""

    def __init__(self, depth: int, data: Path, pictures: Pictures) -> None:
        self.model = build_cifar_resnet(depth)
        path = data / 'weights' / WEIGHTS[depth]
        weights = torch.load(path, map_location='cpu', weights_only=True)
        self.model.load_state_dict(
            {k[len('module.') :]: v for k, v in weights['state_dict'].items()}
        )
        self.model.eval()
        self.calibration = list(pictures.batches(8, augment=False))
        self.macs = count_macs(self.model, picture)['']

    @cached_property
    def groups(self) -> list:
        """What goes together; the zeros of a short-cut stay."""
        groups = find_groups(self.model, picture)
        first = self.calibration[0][0][:2]
        return check_groups(self.model, groups, lambda net: net(first))

    @cached_property
    def costs(self) -> Any:
        """What it costs."""
        return cost_table(self.model, picture)

    @cached_property
    def stats(self) -> Any:
        """What criteria read, from one pass over the calibration data."""
        groups = [g for g in self.groups if not g.dense]
        needs = {'grad', 'squared_grad', 'activation', 'inputs', 'abs_of_sum'}
        return calibrate(self.model, groups, needs, self.calibration, loss_of)

    def ours(self, name: str, ratio: float) -> nn.Module:
        """Returns the model without units, chosen by one of ours."""
        criterion, scope, *protect = OURS[name]
        pruner = StructuredPruner(
            ratio,
            TASK_UTILS.build(criterion_config(criterion)),
            target='macs',
            scope=scope,
            protect=protect[0] if protect else (),
        )
        stats = self.stats
        if 'survivors' in pruner.importance.needs:
            stats = None  # depends on the ratio
        plan = pruner(self.model, self.groups, costs=self.costs, stats=stats)
        pruned = copy.deepcopy(self.model)
        apply_plan(pruned, plan)
        return pruned

    def theirs(self, name: str, ratio: float) -> nn.Module:
        """Returns torch-pruning's: the ratio of channels that meets the
        multiply-adds is found by halving."""
        low, high, best = 0.0, 1.0, None
        for _ in range(12):
            middle = (low + high) / 2
            model = self._pruned_by_theirs(name, middle)
            left = count_macs(model, picture)[''] / self.macs
            gap = abs(left - (1 - ratio))
            if best is None or gap < best[0]:
                best = gap, model
            if gap < 0.003:
                break
            low, high = (middle, high) if left > 1 - ratio else (low, middle)
        return best[1]

    def _pruned_by_theirs(self, name: str, ratio: float) -> nn.Module:
        kind, everywhere, stream = THEIRS[name]
        model = copy.deepcopy(self.model)
        ignored = [model.linear]
        if not stream:
            ignored += [
                layer
                for path, layer in model.named_modules()
                if path == 'conv1' or path.endswith('conv2')
            ]
        if kind is TAYLOR:
            for batch in self.calibration:
                loss_of(model, batch).backward()
        tp.pruner.BasePruner(
            model,
            torch.zeros(1, 3, 32, 32),
            importance=kind(),
            global_pruning=everywhere,
            pruning_ratio=ratio,
            ignored_layers=ignored,
        ).step()
        model.zero_grad()
        return model


def jobs(args: argparse.Namespace) -> list[tuple[int, str, float, str]]:
    """Returns what is measured, what is quick and what is compared first."""
    names = [*THEIRS, *OURS]
    if args.methods:
        names = [n for n in names if n.startswith(tuple(args.methods))]
    return [
        (depth, name, ratio, stage)
        for first in (True, False)
        for depth in args.depths
        for name in names
        for ratio in RATIOS
        for stage in args.stages
        if (stage == 'before') == first
    ]


def measure(args: argparse.Namespace, known: Store) -> None:
    """Measures what is missing, and writes each number at once."""
    missing = [job for job in jobs(args) if known(key(*job)) is None]
    if args.backwards:
        missing.reverse()
    pictures = Pictures(args.data)
    recover = Recovery(pictures, args.iters, args.lr)
    dense = cache(lambda depth: Dense(depth, args.data, pictures))

    @cache
    def pruned(depth: int, name: str, ratio: float) -> nn.Module:
        network = dense(depth)
        make = network.ours if name in OURS else network.theirs
        return make(name, ratio)

    with ProgressBar(len(missing), timed=True) as bar:
        for number, (depth, name, ratio, stage) in enumerate(missing):
            bar.reach(number, f'ResNet-{depth}, {name}, {ratio:.0%}, {stage}')
            if known(key(depth, name, ratio, stage)) is not None:
                continue  # by another process
            if known(f'{depth}') is None:
                network = dense(depth)
                known.write(
                    f'{depth}',
                    **tested(network.model, pictures.test),
                    macs=network.macs,
                    trained=len(pictures.train[1]),
                )
            model = copy.deepcopy(pruned(depth, name, ratio))
            left = count_macs(model, picture)[''] / dense(depth).macs
            if stage != 'before':
                distilled = stage == 'distilled'
                recover(model, dense(depth).model if distilled else None)
            known.write(
                key(depth, name, ratio, stage),
                **tested(model, pictures.test),
                left=left,
            )


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    args = parse_args(argv)
    known = Store(args.work_dir)
    asked = dict(iters=args.iters, lr=args.lr, batch=BATCH)
    before = known('recovery') or asked
    if before != asked and not args.table:
        sys.exit(
            f'{args.work_dir} was made with {before}; choose another '
            '--work-dir'
        )
    if not args.table:
        known.write('recovery', **asked)
        measure(args, known)
    for depth in sorted(args.depths):
        about = known(f'{depth}')
        if about is None:
            continue
        print(
            f'\nResNet-{depth}: {about["accuracy"]:.1f} % dense on '
            f'{len(about["right"])} test pictures, '
            f'{about["macs"] / 1e6:.1f} M multiply-adds; recovery: '
            f'{before["iters"]} steps of {BATCH} of {about["trained"]} '
            'pictures\n'
        )
        print(table(known, depth))
    every = len(args.depths) * len(RATIOS) * len(args.stages) * len(MATCHES)
    code, text = verdict(*behind(known, args), every)
    print(f'\n{text}')
    return code


if __name__ == '__main__':
    sys.exit(main())
