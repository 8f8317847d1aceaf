"""Does a stock detector win back what pruning half of its MACs costs?

RTMDet-tiny of mmdet is trained from nothing on 2-D boxes of the mini world's
front cameras, pruned, and retrained with and without distillation; the dense
one is trained for as many epochs more with the same learning rates (a pruning
of nothing). Prints the AP of COCO on scenes that were held out.

    python benchmarks/mini_world_detector.py --out detector_out

What is finished is kept, so that it can be started again. Exits with 1 where
the recovered model is more than 0.5 AP behind, or the dense one has learnt
nothing to lose.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mini_world_runs import (  # noqa: E402
    INFOS,
    columns,
    dense_and_recovered,
    draw,
    keep_settings,
)

CONFIG = 'projects/configs/detection/rtmdet_tiny_mini_world.py'
CAMERAS = ('CAM_FRONT', 'CAM_FRONT_LEFT', 'CAM_FRONT_RIGHT')
# What moves, by the two kinds that nuScenes knows of it. Each of the ten
# classes would be a tenth of the AP, some by ten boxes that are hardly learnt.
CATEGORIES = dict(
    vehicle=(
        *('car', 'truck', 'construction_vehicle', 'bus', 'trailer'),
        *('motorcycle', 'bicycle'),
    ),
    pedestrian=('pedestrian',),
)
METRICS = (
    ('coco/bbox_mAP', 'AP'),
    ('coco/bbox_mAP_50', 'AP50'),
    ('coco/bbox_mAP_75', 'AP75'),
)
BEHIND = 0.5  # of 100
LEARNT = 5.0  # AP of 100 that a dense model has, so that some can be lost
DENSE, LONGER, RECOVERED = 'dense', 'dense, longer', 'recovered'
GOAL = LONGER, RECOVERED


def main(argv: list[str] | None = None) -> int:
    """Runs all, prints the table; returns the exit code."""
    args = parse_args(argv)
    out = args.out.resolve()
    world = (args.world or out / 'mini_world').resolve()
    keep_settings(out, **dict(vars(args), out='', world=world))
    draw(world, args.scenes)
    find_boxes(world, dict(train=args.every, val=args.val_every))
    reports = dense_and_recovered(
        out,
        world,
        CONFIG,
        args.seed,
        args.epochs,
        args.retrain_epochs,
        args.pruning_ratio,
        (
            *('--target', 'macs', '--importance', args.importance),
            *('--scope', args.scope, '--min-keep', args.min_keep),
            '--prune-frozen',
            *('--latency-runs', 5, '--max-keep-ckpts', 1),
        ),
        # --retrain takes half of the config's.
        [f'optim_wrapper.optimizer.lr={2 * args.retrain_lr}'],
    )
    found, models = columns(reports), reports['recovered']['models']
    print(table(found, models))
    # CocoMetric says nothing of a model that finds nothing, and knows three
    # digits.
    dense, ours = (100 * found[n].get(METRICS[0][0], 0.0) for n in GOAL)
    code, text = verdict(dense, ours)
    print(f'\n{text}')
    return code


def verdict(dense: float, recovered: float) -> tuple[int, str]:
    """Returns the exit code of two APs, and what it means."""
    gained = round(recovered - dense, 1)
    text = (
        f'Recovered against the dense one trained as long: {gained:+.1f} AP '
        f'(at least {-BEHIND:.1f} is the goal)'
    )
    if dense < LEARNT:
        text += f'\n{dense:.1f} AP is too little to say so: train for longer'
    return int(gained < -BEHIND or dense < LEARNT), text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--out', type=Path, default=Path('mini_world_detector'))
    add('--world', type=Path, help='drawn before; else in --out')
    add('--scenes', type=int, default=40, help='of the world, 1/5 held out')
    add('--every', type=int, default=16, help='keyframe to train on')
    add('--val-every', type=int, default=2, help='keyframe to test on')
    add('--epochs', type=int, default=120, help='of the dense model')
    add('--retrain-epochs', type=int, default=60)
    add('--retrain-lr', type=float, default=1.5e-3, help='at its start')
    add('--pruning-ratio', type=float, default=0.5, help='of the MACs')
    add('--importance', default='kd_grad')
    add('--scope', default='global')
    add('--min-keep', type=float, default=0.25, help='of every group')
    add('--seed', type=int, default=0)
    return parser.parse_args(argv)


def find_boxes(world: Path, every: dict[str, int]) -> None:
    """Writes the boxes on the pictures of the front cameras, always anew:
    another run may have taken other keyframes."""
    import mmprune  # noqa: F401
    from projects.VAD.data.picture_boxes import write_coco
    from projects.VAD.data.vad_dataset import NuScenesVADDataset

    for split, step in every.items():
        file = world / f'front_cameras_{split}.json'
        frames = NuScenesVADDataset(
            ann_file=str(world / INFOS.format(split)),
            data_root=str(world),
            queue_length=1,
            test_mode=True,
        )
        chosen = range(0, len(frames), step)
        pictures, boxes = write_coco(
            map(frames.get_data_info, chosen),
            file,
            CAMERAS,
            world,
            CATEGORIES,
        )
        print(f'{file}: {boxes} boxes on {pictures} pictures')


def table(found: dict, models: dict) -> str:
    """Returns the Markdown table."""
    lines = [
        '| model | ' + ' | '.join(h for _, h in METRICS) + ' | MACs (G) |',
        '|---' * (len(METRICS) + 2) + '|',
    ]
    for name, metrics in found.items():
        cells = [f'{100 * metrics.get(key, 0.0):.1f}' for key, _ in METRICS]
        kind = 'dense' if name in (DENSE, LONGER) else 'structured'
        cells.append(f'{models[kind]["macs"] / 1e9:.2f}')
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
