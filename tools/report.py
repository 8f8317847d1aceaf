"""Writes report.html, the page about a run, or a picture of its curves.

    python tools/report.py ckpts/pruned
    python tools/report.py ckpts/pruned --frames compare.png sequence.gif
    python tools/report.py ckpts/pruned --curves curves.png

Works at any time, also while the training runs, and for any folder that
tools/train.py writes.

    python tools/report.py models --final

evaluates the newest model of each step of the DistilBERT guides in a folder,
and writes final_report.json, final_report.png and report.html there.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune.run.cli import fail_in_one_sentence  # noqa: E402
from mmprune.run.flags import make_parser  # noqa: E402
from mmprune.run.report_html import save_curves, write  # noqa: E402


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command; prints the path of what it wrote."""
    args = _parse(argv)
    folder = Path(args.folder)
    if not folder.is_dir():
        raise ValueError(f'{folder} is no folder; give the folder of a run.')
    missing = [path for path in args.frames if not Path(path).is_file()]
    if missing:
        raise ValueError(f'{missing[0]} does not exist; check --frames.')
    target = Path(args.curves).resolve().parent if args.curves else folder
    if not os.access(target, os.W_OK):
        raise ValueError(f'{target} cannot be written; choose another place.')
    if args.final:
        # Evaluating needs PyTorch, which --help does without.
        from mmprune.run.final_report import report_newest

        report_newest(folder, args.latency_runs)
    elif args.curves:
        print(save_curves(folder, args.curves))
    else:
        print(write(folder, args.frames))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser('Write report.html for a run, or draw its curves.')
    add = parser.add_argument
    add('folder', help='output folder of a run, or a work directory')
    add(
        '--frames',
        nargs='+',
        default=[],
        metavar='FILE',
        help='further pictures for the page: PNG, JPEG or GIF',
    )
    add(
        '--curves',
        metavar='FILE',
        help='draw the curves alone, as PNG, SVG or PDF',
    )
    add(
        '--final',
        action='store_true',
        help='compare the newest model of each step in the folder',
    )
    add(
        '--latency-runs',
        type=int,
        default=20,
        help='timed runs of each model with --final',
    )
    return parser.parse_args(argv)


if __name__ == '__main__':
    main()
