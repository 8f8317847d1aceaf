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

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune.errors import blame  # noqa: E402
from mmprune.run.cli import fail_in_one_sentence  # noqa: E402
from mmprune.run.flags import argument, option, read  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What the page is about."""

    folder: str = argument('output folder of a run, or a work directory')
    frames: tuple[str, ...] = option(
        (),
        'further pictures for the page: PNG, JPEG or GIF',
        nargs='+',
        metavar='FILE',
    )
    curves: str | None = option(
        None, 'draw the curves alone, as PNG, SVG or PDF', metavar='FILE'
    )
    final: bool = option(
        False, 'compare the newest model of each step in the folder'
    )
    latency_runs: int = option(
        20, 'timed runs of each model with --final', least=1
    )


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command; prints the path of what it wrote."""
    (asked,) = read(
        'Write report.html for a run, or draw its curves.',
        (ReportOptions,),
        argv,
    )
    folder = Path(asked.folder)
    if not folder.is_dir():
        raise ValueError(f'{folder} is no folder; give the folder of a run.')
    missing = [path for path in asked.frames if not Path(path).is_file()]
    if missing:
        raise ValueError(f'{missing[0]} does not exist; check --frames.')
    target = Path(asked.curves).resolve().parent if asked.curves else folder
    if not os.access(target, os.W_OK):
        raise ValueError(f'{target} cannot be written; choose another place.')
    # Seconds that --help does without.
    if asked.final:
        from mmprune.run.final_report import report_newest

        report_newest(folder, asked.latency_runs)
        return
    from mmprune.run.report_html import save_curves, write

    with blame(f'what {folder} holds cannot be shown'):
        if asked.curves:
            print(save_curves(folder, asked.curves))
        else:
            print(write(folder, asked.frames))


if __name__ == '__main__':
    main()
