"""Draws one frame of the mini world in the format of a nuScenes keyframe.

    python tools/make_keyframe.py demo/keyframe

writes six pictures, a LiDAR sweep and an info file for --ann-file of the
other tools.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune.run.flags import make_parser  # noqa: E402
from projects.VAD.mini_world.keyframe import write_keyframe  # noqa: E402
from tools.make_mini_world import image_size  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser('Draw a keyframe in the format of nuScenes.')
    parser.add_argument('out', help='folder for the pictures and infos')
    parser.add_argument(
        '--seed', type=int, default=0, help='another scene per number'
    )
    parser.add_argument(
        '--image-size',
        type=image_size,
        default=(1600, 900),
        metavar='WxH',
        help='pixels of a picture (default: 1600x900)',
    )
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f'--seed must not be negative, found {args.seed}')
    try:
        path = write_keyframe(args.out, args.seed, args.image_size)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        print(
            f'error: cannot write to {args.out}: {error.strerror}; choose '
            'another folder.',
            file=sys.stderr,
        )
        return 2
    print(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
