"""Whether VAD-tiny without its units computes what it computes with zeros.

For every group of VAD that can lose units, alone, and for all groups
together: one model has the units masked, another has them removed, both run
two frames of a drive (the second reads the BEV of the first), and each output
is compared relative to its own largest magnitude.

    python benchmarks/vad_masked_equals_pruned.py [--ratios 0.3 0.5]

Exits with 1 if any output differs by more than 1e-4 of its scale.
"""

import argparse
import copy
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'projects')]

from vad_latency import CONFIG, add_model_args, dense_vad  # noqa: E402

from mmprune.groups import PruneGroup, named_tensors  # noqa: E402
from mmprune.masks import mask_plan  # noqa: E402
from mmprune.plan import PruningPlan  # noqa: E402
from mmprune.pruners import StructuredPruner  # noqa: E402
from mmprune.pruners.verify import relative_difference  # noqa: E402
from mmprune.run.cli import fail_in_one_sentence, load_config  # noqa: E402
from mmprune.surgery import apply_plan  # noqa: E402

TOLERANCE = 1e-4
# What a model computes before its decoders: plans that touch nothing of a
# part leave its result alone, and it is not computed again.
IMAGE_PARTS = ('img_backbone.', 'img_neck.')
BEV_PARTS = (
    *IMAGE_PARTS,
    'pts_bbox_head.transformer.encoder.',
    'pts_bbox_head.transformer.can_bus_mlp.',
    'pts_bbox_head.transformer.cams_embeds',
    'pts_bbox_head.transformer.level_embeds',
)
ATTENTIONS = {
    'TemporalSelfAttention': 'temporal self-attention',
    'MSDeformableAttention3D': 'spatial cross-attention',
    'CustomMSDeformableAttention': 'deformable attention of decoders',
    'MultiheadAttention': 'nn.MultiheadAttention',
}

Outputs = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Check:
    """What one plan did.

    Attributes:
        kind: Row of the table.
        name: The group, or which groups together.
        ratio: Fraction of the units that was to go.
        groups: Number of groups in the plan.
        removed: Units that went.
        units: Units of the dense groups.
        difference: Pruned against masked.
        effect: Masked against dense: a mask without any effect would prove
            nothing.
    """

    kind: str
    name: str
    ratio: float
    groups: int
    removed: int
    units: int
    difference: float
    effect: float


class Drive:
    """Two frames, and the dense model's view of them.

    Args:
        model: The dense model, in eval mode.
        frames: ``inputs`` and ``data_samples`` of each frame.
    """

    def __init__(self, model: nn.Module, frames: list[tuple]) -> None:
        self.model = model
        self.frames = frames
        self.features, self.bevs = [], []
        with torch.no_grad():
            for inputs, _ in frames:
                self.features.append(model.extract_feat(inputs['img']))
        self.dense = self.run(model, BEV_PARTS[-1:])
        self.bevs = [outs['bev_embed'].transpose(0, 1) for outs in self.dense]

    @torch.no_grad()
    def run(self, model: nn.Module, touched: Sequence[str]) -> Outputs:
        """Returns the raw outputs of each frame.

        Args:
            model: Dense, masked or pruned.
            touched: Tensors that differ from the dense model's.
        """
        from projects.VAD.pruning.family import all_lanes

        head = model.pts_bbox_head
        features, bevs = iter(self.features), iter(self.bevs)
        if not any(name.startswith(IMAGE_PARTS) for name in touched):
            model.extract_feat = lambda images: next(features)
        if not any(name.startswith(BEV_PARTS) for name in touched):
            head.encode = lambda *args: next(bevs)
        model.forget()
        try:
            with all_lanes(model):
                return [model.step(*frame) for frame in self.frames]
        finally:
            model.__dict__.pop('extract_feat', None)
            head.__dict__.pop('encode', None)
            model.forget()

    def compare(self, plan: PruningPlan) -> tuple[float, float]:
        """Returns (pruned against masked, masked against dense)."""
        touched = [s.tensor for g in plan.groups for s in g.slices]
        filled = {s.tensor for g in plan.groups for s in g.consumers}
        masked = copy_sharing(self.model, own=filled)
        mask_plan(masked, plan)
        expected = self.run(masked, touched)
        del masked
        # Surgery replaces tensors and writes into none.
        pruned = copy_sharing(self.model, own=set())
        apply_plan(pruned, plan)
        found = self.run(pruned, touched)
        return worst(expected, found), worst(self.dense, expected)


def copy_sharing(model: nn.Module, own: set[str]) -> nn.Module:
    """Returns a copy that shares all tensors but those named in ``own``."""
    memo = {
        id(tensor): tensor
        for name, tensor in named_tensors(model).items()
        if name not in own
    }
    return copy.deepcopy(model, memo)


def worst(expected: Outputs, found: Outputs) -> float:
    """Returns the largest difference of any output to its own scale."""
    differences = [
        relative_difference(one[name], other[name])
        for one, other in zip(expected, found, strict=True)
        for name in one
    ]
    return max(math.inf if math.isnan(d) else d for d in differences)


def kind_of(group: PruneGroup, model: nn.Module) -> str:
    """Returns the row of the table that a group belongs to."""
    if group.name.startswith('img_backbone'):
        return 'ResNet channels'
    if group.name.startswith('img_neck'):
        return 'FPN channels'
    if group.granularity == 'neuron':
        hidden = 'FFN' if '.ffns.' in group.name else 'branch'
        return f'{hidden} hidden units'
    path = group.name
    if path.endswith(('.heads', '.points')):
        path = path.rpartition('.')[0]
    owner = type(model.get_submodule(path)).__name__
    return f'{ATTENTIONS[owner]}: {group.granularity}s'


def plans(
    groups: Sequence[PruneGroup], model: nn.Module, ratio: float
) -> Iterator[tuple[str, PruningPlan]]:
    """Yields (row, plan): each group alone, then all together."""
    alone = StructuredPruner(ratio, scope='layer')
    for group in groups:
        yield kind_of(group, model), alone(model, [group])
    yield 'all together, same part of each', alone(model, groups)
    everywhere = StructuredPruner(ratio, scope='global')
    yield 'all together, units compete', everywhere(model, groups)


def open_groups(model: nn.Module) -> list[PruneGroup]:
    """Returns all groups that can lose units, frozen layers included."""
    from projects.VAD.pruning.groups import vad_groups

    return [g for g in vad_groups(model) if not g.dense and g.size > 1]


def golden_frames_of(args: argparse.Namespace, size: tuple[int, int]):
    """Returns the two golden frames, ``None`` without the shared folder."""
    if not (args.shared / 'vad' / 'golden').is_dir():
        return None
    from golden import golden_frames, golden_sets

    tag = golden_sets(args.shared, 'tiny')[0].tag
    return golden_frames(args.shared, tag, size)[:2]


def drawn_frames(size: tuple[int, int]) -> list[tuple]:
    """Returns two frames of a drawn scene; the car drives 2 m in between."""
    from mmdet3d.registry import DATASETS
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import init_default_scope

    from projects.VAD.data.config_datasets import set_info_file
    from projects.VAD.mini_world.keyframe import write_keyframe

    cfg = load_config(str(CONFIG))
    init_default_scope('mmdet3d')
    with tempfile.TemporaryDirectory() as folder:
        set_info_file(cfg, str(write_keyframe(folder)))
        dataset = cfg.test_dataloader.dataset
        for step in dataset.pipeline:
            if step.type == 'RandomScaleImageMultiViewImage':
                step.scales = [size[1] / 1600]
        sample = DATASETS.build(dataset)[0]
    batch = pseudo_collate([sample])
    first = batch['data_samples'][0]
    second = copy.deepcopy(first)
    can_bus = second.can_bus.copy()
    can_bus[1] += 2
    second.set_metainfo(dict(can_bus=can_bus))
    inputs = dict(
        img=torch.stack([torch.as_tensor(batch['inputs']['img'][0])])
    )
    return [(inputs, [first]), (inputs, [second])]


def check_all(model: nn.Module, args: argparse.Namespace) -> list[Check]:
    """Returns every check."""
    drives = []
    for size in (args.size, args.full_size):
        frames = golden_frames_of(args, size) or drawn_frames(size)
        drives.append(Drive(model, frames))
    alone, together = drives
    groups = open_groups(model)
    todo = [(r, *p) for r in args.ratios for p in plans(groups, model, r)]
    checks = []
    with Progress(transient=True) as progress:
        for ratio, kind, plan in progress.track(todo):
            drive = together if kind.startswith('all ') else alone
            name = plan.groups[0].name if drive is alone else kind
            checks.append(
                Check(
                    kind,
                    name,
                    ratio,
                    len(plan.groups),
                    sum(len(plan.removed(g)) for g in plan.groups),
                    sum(g.size for g in plan.groups),
                    *drive.compare(plan),
                )
            )
    return checks


def table(checks: list[Check]) -> str:
    """Returns the worst differences by kind of group as Markdown."""
    ratios = sorted({c.ratio for c in checks})
    head = ['kind', 'groups', 'units']
    for ratio in ratios:
        head += [f'removed at {ratio:g}', f'worst at {ratio:g}']
    head.append('least effect of a mask')
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    for kind in dict.fromkeys(c.kind for c in checks):
        rows = [c for c in checks if c.kind == kind]
        one = [c for c in rows if c.ratio == ratios[0]]
        cells = [kind, sum(c.groups for c in one), sum(c.units for c in one)]
        for ratio in ratios:
            here = [c for c in rows if c.ratio == ratio]
            cells.append(sum(c.removed for c in here))
            cells.append(f'{max(c.difference for c in here):.1e}')
        cells.append(f'{min(c.effect for c in rows):.1e}')
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return '\n'.join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""

    def size(text: str) -> tuple[int, int]:
        height, _, width = text.partition('x')
        return int(height), int(width)

    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--ratios', type=float, nargs='+', default=[0.3, 0.5])
    add(
        '--size',
        type=size,
        default=(192, 320),
        metavar='HxW',
        help='images for the groups alone',
    )
    add(
        '--full-size',
        type=size,
        default=(384, 640),
        metavar='HxW',
        help='images for all groups together',
    )
    add('--verbose', action='store_true', help='print every check')
    add_model_args(parser)
    return parser.parse_args(argv)


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    args = parse_args(argv)
    start = time.perf_counter()
    model, weights = dense_vad(args)
    checks = check_all(model, args)
    seconds = time.perf_counter() - start
    print(
        f'VAD-tiny, two frames, weights: {weights}; groups alone at '
        f'{args.size[0]}x{args.size[1]}, together at '
        f'{args.full_size[0]}x{args.full_size[1]}; {len(checks)} plans in '
        f'{seconds:.0f} s, {torch.get_num_threads()} threads\n'
    )
    print(table(checks))
    failed = [c for c in checks if c.difference > TOLERANCE]
    for check in checks if args.verbose else failed:
        print(
            f'{check.name} at {check.ratio:g}: {check.difference:.1e} '
            f'(mask against dense {check.effect:.1e})'
        )
    print(
        f'\n{len(failed)} of {len(checks)} plans differ by more than '
        f'{TOLERANCE:g} of the scale of an output'
    )
    return int(bool(failed))


if __name__ == '__main__':
    sys.exit(main())
