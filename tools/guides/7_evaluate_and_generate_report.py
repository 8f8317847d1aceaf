"""Step 7 of the guide: all models in one table and one picture.

    python tools/guides/7_evaluate_and_generate_report.py

Writes final_report.json, final_report.png and report.html into models/.
"""

import argparse

from distilbert_guide import words  # first: it finds mmprune

from mmprune.run.cli import fail_in_one_sentence
from mmprune.run.final_report import report_newest
from mmprune.run.flags import ShowDefaults


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=ShowDefaults
    )
    add = parser.add_argument
    add('--models_dir', default='./models', help='where the folders are')
    add('--latency_runs', type=int, default=20, help='timed runs of each')
    args = parser.parse_args(argv)
    report_newest(words.Path(args.models_dir), args.latency_runs)


if __name__ == '__main__':
    main()
