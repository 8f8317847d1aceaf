"""By what the ResNets of CIFAR-10 are pruned, and what came out."""

import argparse
import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch_pruning as tp

from mmprune.atomic_file import save_json

RATIOS = (0.3, 0.5, 0.7)
STREAM = ('^conv1$',)
# Name -> criterion, scope, and what is protected; trained in this order.
OURS = {
    'taylor': ('taylor', 'global'),
    'kd_grad': ('kd_grad', 'global'),
    'fisher': ('fisher', 'global'),
    'fisher, inside': ('fisher', 'global', STREAM),
    'group_taylor': ('group_taylor', 'global'),
    'group_taylor, inside': ('group_taylor', 'global', STREAM),
    'group_l2': ('group_l2', 'global'),
    'group_l2, inside': ('group_l2', 'global', STREAM),
    'l2': ('l2', 'global'),
    'l2, isomorphic': ('l2', 'isomorphic'),
    'l2, by layer': ('l2', 'layer'),
    'l2, inside': ('l2', 'global', STREAM),
    'saliency': ('saliency', 'global'),
    'lamp': ('lamp', 'global'),
    'fpgm': ('fpgm', 'global'),
    'l1': ('l1', 'global'),
    'bn_scale': ('bn_scale', 'global'),
    'activation': ('activation', 'global'),
    'wanda': ('wanda', 'global'),
    'wanda, inside': ('wanda', 'global', STREAM),
    'l2+kd_grad': ('l2+kd_grad', 'global'),
    'remain': ('remain', 'global'),
    'taylor, by layer': ('taylor', 'layer'),
    'random': ('random', 'global'),
}
TAYLOR = tp.importance.GroupTaylorImportance
MAGNITUDE = tp.importance.GroupMagnitudeImportance
# Name -> importance, whether all layers compete, and whether what the blocks
# add to each other may lose channels: its graph takes the short-cuts, which
# put zeros beside the channels, for additions of channel i to channel i.
THEIRS = {
    'torch-pruning: magnitude, global': (MAGNITUDE, True, True),
    'torch-pruning: Taylor, global': (TAYLOR, True, True),
    'torch-pruning: magnitude, by layer': (MAGNITUDE, False, True),
    'torch-pruning: Taylor, by layer': (TAYLOR, False, True),
    'torch-pruning: magnitude, inside': (MAGNITUDE, True, False),
    'torch-pruning: Taylor, inside': (TAYLOR, True, False),
}
LEVEL = 0.05  # of being wrong somewhere
STAGES = ('before', 'recovered', 'distilled')
# Which of ours stand beside which of theirs.
MATCHES = {
    'by size': (
        ('l1', 'l2', 'l2, isomorphic', 'l2, by layer', 'l2, inside')
        + ('group_l2', 'group_l2, inside'),
        tuple(name for name in THEIRS if 'magnitude' in name),
    ),
    'by gradient': (
        ('taylor', 'taylor, by layer', 'fisher', 'fisher, inside')
        + ('group_taylor', 'group_taylor, inside', 'saliency', 'kd_grad'),
        tuple(name for name in THEIRS if 'Taylor' in name),
    ),
    'the best': (tuple(OURS), tuple(THEIRS)),
}


class Store:
    """What is known, a file for each number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / 'numbers'

    def __call__(self, name: str) -> dict | None:
        path = self._path(name)
        return json.loads(path.read_text()) if path.is_file() else None

    def write(self, name: str, **values: Any) -> None:
        save_json(values, self._path(name))

    def _path(self, name: str) -> Path:
        return (
            self.folder / f'{name.replace(" | ", "_").replace(" ", "")}.json'
        )


def key(depth: int, name: str, ratio: float, stage: str) -> str:
    """The name of a measurement in the file."""
    return f'{depth} | {name} | {ratio:g} | {stage}'


def table(known: Store, depth: int) -> str:
    """Returns the numbers of one network as Markdown."""
    heads = [f'{r:.0%}: {s}' for r in RATIOS for s in STAGES]
    lines = [
        f'| ResNet-{depth} | {" | ".join(heads)} |',
        f'|---{"|---" * len(heads)}|',
    ]
    for name in (*OURS, *THEIRS):
        cells = [known(key(depth, name, r, s)) for r in RATIOS for s in STAGES]
        if any(cells):
            shown = [f'{c["accuracy"]:.1f}' if c else '' for c in cells]
            lines.append(f'| {name} | {" | ".join(shown)} |')
    return '\n'.join(lines)


def best(
    known: Store,
    names: Iterable[str],
    depth: int,
    *point: Any,
) -> dict | None:
    """Returns the best of some methods at one point, if all were measured."""
    cells = [known(key(depth, name, *point)) for name in names]
    return (
        max(cells, key=lambda cell: cell['accuracy']) if all(cells) else None
    )


def behind(
    known: Store, args: argparse.Namespace
) -> tuple[list[tuple[str, float]], int]:
    """Returns the points at which torch-pruning is ahead, each with how likely
    so much of a lead is where both are as good (McNemar's test on the same
    pictures), and how many points can be compared."""
    ahead, compared = [], 0
    points = itertools.product(args.depths, RATIOS, args.stages)
    for (depth, ratio, stage), kind in itertools.product(points, MATCHES):
        pair = [best(known, n, depth, ratio, stage) for n in MATCHES[kind]]
        if None in pair:
            continue
        compared += 1
        pictures = list(zip(*(cell['right'] for cell in pair), strict=True))
        lead = pictures.count(('0', '1')) - pictures.count(('1', '0'))
        if lead > 0:
            mine, other = (f'{cell["accuracy"]:.1f}' for cell in pair)
            differ = sum(a != b for a, b in pictures)
            ahead.append(
                (
                    f'ResNet-{depth}, {ratio:.0%}, {stage}, {kind}: {mine} '
                    f'against {other}',
                    math.erfc(lead / math.sqrt(2 * differ)),
                )
            )
    return ahead, compared


def verdict(
    ahead: list[tuple[str, float]], compared: int, asked: int
) -> tuple[int, str]:
    """Returns the exit code of what `behind` found, and what it means.

    Many comparisons share one level (Bonferroni): of 54 at 5 % each, two or
    three would show a difference where there is none.
    """
    level = LEVEL / max(compared, 1)
    lines = [
        f'torch-pruning is ahead, {"" if chance < level else "not "}by more '
        f'than chance: {point} (p = {chance:.3f})'
        for point, chance in ahead
    ]
    lines.append(
        f'{compared} of {asked} comparisons made; more than chance is '
        f'p < {level:.4f}, {LEVEL:.0%} for all of them together'
    )
    sure = any(chance < level for _, chance in ahead)
    return int(compared < asked or sure), '\n'.join(lines)
