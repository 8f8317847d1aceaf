"""Step 9 of the guide: four bits after training, to compare with.

    python tools/guides/9_quantize_pruned_model.py

Quantizes the newest pruned model and its dense baseline; writes
models/pruned_quantized_YYYYMMDD_HHMMSS/ and models/quantized_student_.../.
"""

import argparse
from pathlib import Path

from distilbert_guide import words

from mmprune.quantization import Scheme
from mmprune.run import named_runs
from mmprune.run.cli import fail_in_one_sentence
from mmprune.run.flags import ShowDefaults
from mmprune.run.quantize import NAME, quantize


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=ShowDefaults
    )
    add = parser.add_argument
    add('--pruned_model_path', help='folder of the pruned model')
    add('--method', default='rtn', choices=('rtn', 'gptq'), help='of rounding')
    add('--group_size', type=int, default=32, help='weights of a scale')
    add('--models_dir', default='./models', help='where folders go')
    return parser.parse_args(argv)


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the step."""
    args = parse_args(argv)
    pruned = words.find_pruned(args)
    task = words.task_of(pruned)
    dense = Path(named_runs.about(pruned)['baseline'])
    for name, checkpoint in (
        (words.PTQ, words.checkpoint_of(pruned)),
        (words.QUANTIZED, dense),
    ):
        folder = named_runs.new_folder(args.models_dir, name)
        about = dict(
            step='quantization after training',
            method=args.method,
            source=str(checkpoint),
            baseline=str(dense),
        )
        task.dump(folder / words.TASK)
        quantize(
            task,
            checkpoint,
            folder,
            method=args.method,
            scheme=Scheme(group_size=args.group_size),
        )
        words.finish(folder, about, folder / NAME)


if __name__ == '__main__':
    main()
