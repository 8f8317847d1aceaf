"""Draws a small town and writes it as a valid nuScenes dataset.

    python tools/make_mini_world.py data/mini_world

Up to ten scenes become v1.0-mini, more v1.0-trainval; a fifth of them is in
the devkit's validation split.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune.run.cli import ProgressBar, fail_in_one_sentence  # noqa: E402
from mmprune.run.flags import make_parser  # noqa: E402
from projects.VAD.mini_world.world import all_cores, write_world  # noqa: E402


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _parse_args(argv)
    with ProgressBar(args.scenes + 2) as progress:
        out = write_world(
            args.out,
            args.seed,
            args.scenes,
            args.image_size,
            args.force,
            progress,
            args.workers or all_cores(),
        )
    print(out)
    return 0


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser('Draw a small town as a nuScenes dataset.')
    parser.add_argument('out', help='folder of the dataset')
    parser.add_argument(
        '--seed', type=int, default=0, help='another world per number'
    )
    parser.add_argument(
        '--scenes',
        type=int,
        default=10,
        help='scenes of 20 seconds; a fifth is for validation (default: 10)',
    )
    parser.add_argument(
        '--image-size',
        type=image_size,
        default=(400, 225),
        metavar='WxH',
        help='pixels of a picture (default: 400x225)',
    )
    parser.add_argument(
        '--workers',
        type=int,
        default=0,
        help='processes that draw; 0 for as many as there are cores '
        '(default: 0)',
    )
    parser.add_argument(
        '--force', action='store_true', help='replace a folder that has files'
    )
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f'--seed must not be negative, found {args.seed}')
    if args.workers < 0:
        parser.error(f'--workers must not be negative, found {args.workers}')
    return args


def image_size(text: str) -> tuple[int, int]:
    """Returns width and height of a size given as WxH."""
    width, x, height = text.lower().partition('x')
    if not (x and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(
            f'give the size as WxH in pixels, such as 400x225, not {text!r}'
        )
    return int(width), int(height)


if __name__ == '__main__':
    sys.exit(main())
