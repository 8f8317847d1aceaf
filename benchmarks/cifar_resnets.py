"""What criteria cost two real ResNets in accuracy, before and after a short
recovery, beside torch-pruning.

    python benchmarks/cifar_resnets.py --data ../shared/data

Trained ResNet-20 and ResNet-56 lose 30, 50 and 70 % of their multiply-adds by
every criterion, and by torch-pruning's magnitude and Taylor. Each pruned model
is tested as it is, after a short training, and after the same training with
distillation: same pictures, same order, same rates for all. What is measured
is written at once to table.json in --work-dir, and left alone when the command
is started again. Exits with 1 where torch-pruning's better one is ahead of the
best of ours by more than a standard error.
"""

import argparse
import copy
import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch_pruning as tp  # noqa: E402
from cifar_resnet_model import build_cifar_resnet  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from mmprune.atomic_file import save_json  # noqa: E402
from mmprune.calibration import calibrate  # noqa: E402
from mmprune.cost import cost_table, count_macs  # noqa: E402
from mmprune.criteria import criterion_config  # noqa: E402
from mmprune.datasets import CIFAR  # noqa: E402
from mmprune.models.imitation import Term  # noqa: E402
from mmprune.pruners import StructuredPruner, check_groups  # noqa: E402
from mmprune.pruning import find_groups  # noqa: E402
from mmprune.registry import TASK_UTILS  # noqa: E402
from mmprune.run.progress import ProgressBar  # noqa: E402
from mmprune.surgery import apply_plan  # noqa: E402

WEIGHTS = {
    20: 'cifar10_resnet20-12fca82f.th',
    56: 'cifar10_resnet56-4bfd9763.th',
}
RATIOS = (0.3, 0.5, 0.7)
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
# Name -> criterion and scope; in this order they are trained.
OURS = {
    'taylor': ('taylor', 'global'),
    'fisher': ('fisher', 'global'),
    'group_l2': ('group_l2', 'global'),
    'l2': ('l2', 'global'),
    'l2, isomorphic': ('l2', 'isomorphic'),
    'saliency': ('saliency', 'global'),
    'kd_grad': ('kd_grad', 'global'),
    'lamp': ('lamp', 'global'),
    'fpgm': ('fpgm', 'global'),
    'l1': ('l1', 'global'),
    'bn_scale': ('bn_scale', 'global'),
    'activation': ('activation', 'global'),
    'wanda': ('wanda', 'global'),
    'l2+kd_grad': ('l2+kd_grad', 'global'),
    'remain': ('remain', 'global'),
    'random': ('random', 'global'),
}
TAYLOR = tp.importance.GroupTaylorImportance
MAGNITUDE = tp.importance.GroupMagnitudeImportance
# Name -> importance, and whether all layers compete.
THEIRS = {
    'torch-pruning: magnitude, global': (MAGNITUDE, True),
    'torch-pruning: Taylor, global': (TAYLOR, True),
    'torch-pruning: magnitude, by layer': (MAGNITUDE, False),
    'torch-pruning: Taylor, by layer': (TAYLOR, False),
}
STAGES = ('before', 'recovered', 'distilled')
TERM = Term(loss='kl', temperature=4.0, weight=1.0)
BATCH = 64


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
    add('--iters', type=int, default=64, help='steps of a recovery')
    add('--lr', type=float, default=0.01, help='first rate; ends at 0')
    add('--stages', nargs='+', default=STAGES, choices=STAGES)
    add('--methods', nargs='+', help='only these rows, by the start of names')
    add('--table', action='store_true', help='print what is there and stop')
    return parser.parse_args(argv)


class Pictures:
    """The pictures in memory, ready for the networks."""

    def __init__(self, root: Path) -> None:
        folders = [root / 'cifar10_jpeg', root / 'cifar10_lossless']
        self.train = self._read(folders, 'trainval')
        self.test = self._read(folders, 'test')

    def _read(self, folders: list[Path], split: str) -> tuple[Tensor, Tensor]:
        sets = [CIFAR('cifar10', str(f), split) for f in folders]
        pictures = torch.cat([torch.from_numpy(s.images) for s in sets])
        labels = torch.tensor([label for s in sets for label in s.labels])
        pictures = pictures.permute(0, 3, 1, 2).float() / 255
        return (pictures - MEAN) / STD, labels

    def batches(self, count: int, augment: bool) -> Iterator[tuple]:
        """Yields training batches, the same ones for every model."""
        draw = torch.Generator().manual_seed(0)
        pictures, labels = self.train
        order = torch.empty(0, dtype=torch.long)
        for _ in range(count):
            if len(order) < BATCH:
                order = torch.randperm(len(labels), generator=draw)
            index, order = order[:BATCH], order[BATCH:]
            batch = pictures[index]
            if augment:
                batch = _augmented(batch, draw)
            yield batch, labels[index]


def _augmented(batch: Tensor, draw: torch.Generator) -> Tensor:
    """Mirrored by chance, and shifted by up to 4 pixels."""
    mirrored = torch.rand(len(batch), generator=draw) < 0.5
    batch = torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(3), batch)
    padded = nn.functional.pad(batch, (4, 4, 4, 4))
    places = torch.randint(0, 9, (len(batch), 2), generator=draw).tolist()
    return torch.stack(
        [
            picture[:, y : y + 32, x : x + 32]
            for picture, (y, x) in zip(padded, places, strict=True)
        ]
    )


def loss_of(model: nn.Module, batch: tuple) -> Tensor:
    """The model's own loss."""
    return model(*batch, mode='loss')['loss']


def picture(model: nn.Module) -> Tensor:
    """Runs a model on one picture."""
    return model(torch.zeros(1, 3, 32, 32))


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Returns the percentage of test pictures that are named right."""
    model.eval()
    right = 0
    with torch.no_grad():
        for pictures, labels in zip(
            *(t.split(250) for t in data), strict=True
        ):
            right += int((model(pictures).argmax(1) == labels).sum())
    return 100 * right / len(data[1])


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
        self.broken = 0

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
        criterion, scope = OURS[name]
        pruner = StructuredPruner(
            ratio,
            TASK_UTILS.build(criterion_config(criterion)),
            target='macs',
            scope=scope,
        )
        stats = self.stats
        if 'survivors' in pruner.importance.needs:
            stats = None  # depends on the ratio
        plan = pruner(self.model, self.groups, costs=self.costs, stats=stats)
        pruned = copy.deepcopy(self.model)
        apply_plan(pruned, plan)
        return pruned

    def theirs(self, name: str, ratio: float) -> nn.Module | None:
        """Returns torch-pruning's: the ratio of channels that meets the
        multiply-adds is found by halving. At some ratios its short-cuts no
        longer fit and the model does not run; one nearby is taken."""
        low, high, best = 0.0, 1.0, None
        for _ in range(12):
            middle = (low + high) / 2
            for nudge in (0, 0.01, -0.01, 0.02, -0.02):
                model = self._pruned_by_theirs(name, middle + nudge)
                try:
                    left = count_macs(model, picture)[''] / self.macs
                    break
                except RuntimeError:
                    self.broken += 1
            else:
                break
            gap = abs(left - (1 - ratio))
            if best is None or gap < best[0]:
                best = gap, model
            if gap < 0.003:
                break
            low, high = (middle, high) if left > 1 - ratio else (low, middle)
        return best and best[1]

    def _pruned_by_theirs(self, name: str, ratio: float) -> nn.Module:
        kind, everywhere = THEIRS[name]
        model = copy.deepcopy(self.model)
        if kind is TAYLOR:
            for batch in self.calibration:
                loss_of(model, batch).backward()
        tp.pruner.BasePruner(
            model,
            torch.zeros(1, 3, 32, 32),
            importance=kind(),
            global_pruning=everywhere,
            pruning_ratio=ratio,
            ignored_layers=[model.linear],
        ).step()
        model.zero_grad()
        return model


def recover(
    model: nn.Module,
    teacher: nn.Module | None,
    pictures: Pictures,
    args: argparse.Namespace,
) -> None:
    """Trains a pruned model for a short time, in place."""
    model.train().requires_grad_(True)
    optimizer = torch.optim.SGD(
        model.parameters(), args.lr, momentum=0.9, weight_decay=1e-4
    )
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.iters)
    for batch, labels in pictures.batches(args.iters, augment=True):
        scores = model(batch)
        loss = nn.functional.cross_entropy(scores, labels)
        if teacher is not None:
            with torch.no_grad():
                expected = teacher(batch)
            loss = loss + TERM(scores, expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()


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


def measure(args: argparse.Namespace, found: dict, path: Path) -> None:
    """Measures what is missing, and writes each number at once."""
    missing = [job for job in jobs(args) if key(*job) not in found]
    pictures = Pictures(args.data)
    networks: dict[int, Dense] = {}
    pruned: dict[tuple, nn.Module] = {}
    with ProgressBar(len(missing), timed=True) as bar:
        for number, (depth, name, ratio, stage) in enumerate(missing):
            bar.reach(number, f'ResNet-{depth}, {name}, {ratio:.0%}, {stage}')
            if depth not in networks:
                dense = networks[depth] = Dense(depth, args.data, pictures)
                score = accuracy(dense.model, pictures.test)
                found[f'{depth}'] = dict(
                    accuracy=score,
                    macs=dense.macs,
                    tested=len(pictures.test[1]),
                    trained=len(pictures.train[1]),
                )
            dense = networks[depth]
            if (depth, name, ratio) not in pruned:
                make: Callable = dense.ours if name in OURS else dense.theirs
                pruned[depth, name, ratio] = make(name, ratio)
            model = copy.deepcopy(pruned[depth, name, ratio])
            if model is None:
                continue
            left = count_macs(model, picture)[''] / dense.macs
            if stage != 'before':
                teacher = dense.model if stage == 'distilled' else None
                recover(model, teacher, pictures, args)
            score = accuracy(model, pictures.test)
            found[key(depth, name, ratio, stage)] = dict(
                accuracy=score, left=left, broken=dense.broken
            )
            save_json(found, path)


def key(depth: int, name: str, ratio: float, stage: str) -> str:
    """The name of a measurement in the file."""
    return f'{depth} | {name} | {ratio:g} | {stage}'


def table(found: dict, depth: int) -> str:
    """Returns the numbers of one network as Markdown."""
    heads = [f'{r:.0%}: {s}' for r in RATIOS for s in STAGES]
    lines = [
        f'| ResNet-{depth} | {" | ".join(heads)} |',
        f'|---{"|---" * len(heads)}|',
    ]
    for name in (*OURS, *THEIRS):
        cells = [
            found.get(key(depth, name, r, s)) for r in RATIOS for s in STAGES
        ]
        if any(cells):
            shown = [f'{c["accuracy"]:.1f}' if c else '' for c in cells]
            lines.append(f'| {name} | {" | ".join(shown)} |')
    return '\n'.join(lines)


def behind(found: dict, depth: int) -> list[str]:
    """Returns the points at which torch-pruning is ahead."""
    lost = []
    for ratio in RATIOS:
        for stage in STAGES:
            best = []
            for names in (OURS, THEIRS):
                cells = [found.get(key(depth, n, ratio, stage)) for n in names]
                best.append(
                    max((c['accuracy'] for c in cells if c), default=math.nan)
                )
            mine, other = best
            share = other / 100
            tested = found[f'{depth}']['tested']
            error = 100 * math.sqrt(share * (1 - share) / tested)
            if other > mine + error:
                lost.append(
                    f'ResNet-{depth}, {ratio:.0%}, {stage}: {mine:.1f} '
                    f'against {other:.1f}'
                )
    return lost


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    args = parse_args(argv)
    path = args.work_dir / 'table.json'
    found = json.loads(path.read_text()) if path.is_file() else {}
    asked = dict(iters=args.iters, lr=args.lr, batch=BATCH)
    if found.setdefault('recovery', asked) != asked and not args.table:
        sys.exit(f'{path} was made with {found["recovery"]}; choose another '
                 '--work-dir')  # fmt: skip
    if not args.table:
        measure(args, found, path)
    lost = []
    for depth in args.depths:
        if f'{depth}' not in found:
            continue
        about = found[f'{depth}']
        print(
            f'\nResNet-{depth}: {about["accuracy"]:.1f} % dense on '
            f'{about["tested"]} test pictures, {about["macs"] / 1e6:.1f} M '
            f'multiply-adds; recovery: {asked["iters"]} steps of {BATCH} of '
            f'{about["trained"]} pictures\n'
        )
        print(table(found, depth))
        lost += behind(found, depth)
    for point in lost:
        print(f'torch-pruning is ahead: {point}')
    return int(bool(lost))


if __name__ == '__main__':
    sys.exit(main())
