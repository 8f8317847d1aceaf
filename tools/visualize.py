"""Draws what VAD sees and plans: one keyframe, or a drive as GIF or MP4.

    python tools/visualize.py projects/configs/VAD/VAD_tiny_stage_2.py \\
        ckpts/pruned/vad_structured_pruned.pth --dense ckpts/VAD_tiny.pth
    python tools/visualize.py ... --scene 0 --out drive.gif

Six cameras with boxes, and the bird's-eye view with boxes, trajectories, map
lines and the plan; with --dense the dense model's row above the pruned one's.
With --compact the front camera alone, the models side by side.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune.run import options  # noqa: E402
from mmprune.run.cli import fail_in_one_sentence  # noqa: E402
from mmprune.run.flags import argument, check_values, option, read  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What is drawn, and how."""

    config: str = argument('config with a test_dataloader')
    checkpoint: str | None = argument(
        'dense or pruned checkpoint', None, nargs='?'
    )
    dense: str | None = option(
        None, 'checkpoint of the dense model, for comparison'
    )
    ann_file: str | None = options.annotations()
    out: str = option(
        'vad.png',
        'a PNG for one keyframe; a GIF, an MP4 or a folder of PNGs for a '
        'sequence',
    )
    index: int | None = option(
        None, 'which keyframe, or the first', type=int, least=0, shown='0'
    )
    frames: int | None = option(
        None,
        'how many keyframes to draw, in order',
        type=int,
        least=1,
        shown='1, or all of a --scene',
    )
    scene: str | None = option(
        None, 'draw a scene: its token, name or number from 0'
    )
    fps: float = option(2.0, 'frames per second', least=0.1, most=50)
    score_thr: float = option(0.3, 'least score of a box', least=0, most=1)
    no_gt: bool = option(False, 'leave out the ground truth')
    gt_only: bool = option(False, 'ground truth, no model')
    compact: bool = option(
        False,
        'front camera and view from above, models side by side: readable at '
        'the width of a README',
    )
    device: str = option('cpu', 'cpu, cuda, cuda:1, ...')
    trust_checkpoint: bool = options.trust_checkpoint()

    def __post_init__(self) -> None:
        check_values(self)
        if self.gt_only and (self.checkpoint or self.dense or self.no_gt):
            raise ValueError(
                '--gt-only draws no model and only ground truth; leave out '
                'the checkpoints and --no-gt.'
            )
        if not self.gt_only and not self.checkpoint:
            raise ValueError(
                'no checkpoint is given; name one or use --gt-only.'
            )
        if self.scene is not None and self.index is not None:
            raise ValueError(
                '--scene begins with its first keyframe; leave out --index '
                'or --scene.'
            )


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command; prints the path of the picture."""
    (asked,) = read(
        "Draw keyframes and VAD's output: PNG, GIF or MP4.",
        (PictureOptions,),
        argv,
    )
    # Seconds that --help does without.
    from projects.VAD.drawing.command import draw

    draw(asked)
    print(asked.out)


if __name__ == '__main__':
    main()
