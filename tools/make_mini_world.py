"""Draws a small town and writes it as a valid nuScenes dataset.

    python tools/make_mini_world.py data/mini_world

Up to ten scenes become v1.0-mini, more v1.0-trainval; a fifth of them is in
the devkit's validation split.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune.run.cli import ProgressBar, fail_in_one_sentence  # noqa: E402
from mmprune.run.flags import argument, check_values, option, read  # noqa: E402
from mmprune.run.options import image_size, seed  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class WorldOptions:
    """What is drawn."""

    out: str = argument('folder of the dataset')
    seed: int = seed('another world per number')
    scenes: int = option(10, 'scenes of 20 seconds; a fifth is for validation')
    image_size: tuple[int, int] = image_size((400, 225))
    workers: int = option(
        0, 'processes that draw; 0 for as many as there are cores', least=0
    )
    force: bool = option(False, 'replace a folder that has files')

    def __post_init__(self) -> None:
        check_values(self)


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command; prints the folder."""
    (asked,) = read(
        'Draw a small town as a nuScenes dataset.', (WorldOptions,), argv
    )
    # Seconds that --help does without.
    from projects.VAD.mini_world.world import all_cores, write_world

    with ProgressBar(asked.scenes + 2, timed=True) as progress:
        out = write_world(
            asked.out,
            asked.seed,
            asked.scenes,
            asked.image_size,
            asked.force,
            progress,
            asked.workers or all_cores(),
        )
    print(out)


if __name__ == '__main__':
    main()
