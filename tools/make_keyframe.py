"""Draws one frame of the mini world in the format of a nuScenes keyframe.

    python tools/make_keyframe.py demo/keyframe

writes six pictures, a LiDAR sweep and an info file for --ann-file of the
other tools.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune.run.cli import fail_in_one_sentence  # noqa: E402
from mmprune.run.flags import argument, check_values, read  # noqa: E402
from mmprune.run.options import image_size, seed  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class KeyframeOptions:
    """What is drawn."""

    out: str = argument('folder for the pictures and infos')
    seed: int = seed('another scene per number')
    image_size: tuple[int, int] = image_size((1600, 900))

    def __post_init__(self) -> None:
        check_values(self)


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command; prints the path of the info file."""
    (asked,) = read(
        'Draw a keyframe in the format of nuScenes.', (KeyframeOptions,), argv
    )
    # Seconds that --help does without.
    from projects.VAD.mini_world.keyframe import write_keyframe

    print(write_keyframe(asked.out, asked.seed, asked.image_size))


if __name__ == '__main__':
    main()
