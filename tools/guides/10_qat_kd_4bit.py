"""Step 10 of the guide: a pruned model learns to do with four bits.

    python tools/guides/10_qat_kd_4bit.py --fast

Takes the newest pruned model; the dense one teaches. Writes
models/pruned_qkd4bit_YYYYMMDD_HHMMSS/.
"""

import argparse
from pathlib import Path
from typing import Any

from distilbert_guide import words
from mmengine.config import Config

from mmprune.checkpoints.writing import (
    pruned_model_config,
    without_pretrained,
)
from mmprune.run import named_runs, training
from mmprune.run.cli import fail_in_one_sentence
from mmprune.run.flags import ShowDefaults
from mmprune.run.quantize import NAME, quantize


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Returns the flags; what was not given is ``None``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=ShowDefaults
    )
    add = parser.add_argument
    add('--fast', action='store_true', help='the fast mode of the guide')
    add('--preset', choices=('conservative',), help='for accuracy')
    add('--pruned_model_path', help='folder of the pruned model')
    add('--num_epochs', type=int, help='epochs')
    add('--batch_size', type=int, help='sentences of a step')
    add('--learning_rate', type=float, help='learning rate')
    add('--max_grad_norm', type=float, help='norm that gradients are cut to')
    add('--beta_ce', type=float, help='weight of the task')
    add('--beta_logits', type=float, help='weight of the logits')
    add('--beta_hidden', type=float, help='weight of the hidden states')
    add('--temperature', type=float, help='of the logits')
    add('--group_size', type=int, default=32, help='weights of a scale')
    add(
        '--activations',
        default='float',
        choices=('float', 'int8'),
        help='int8 rounds them, too',
    )
    add('--models_dir', default='./models', help='where folders go')
    add('--seed', type=int, default=0, help='of the data')
    add('--resume', action='store_true', help='go on with the last run')
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', help='as in mmengine')
    return parser.parse_args(argv)


def config_from(args: Any, task: Config, pruned: Path, dense: str) -> Config:
    """Returns the config of the training that the flags describe."""
    name = 'qkd_fast' if args.fast else f'qkd_{args.preset or "full"}'
    mode = words.mode_config(name)
    cfg = words.with_mode(task, mode, words.QKD)
    model = without_pretrained(task.model.to_dict())
    weights, temperature = words.weights_of(mode)
    for key in weights:
        asked = getattr(args, f'beta_{key}')
        weights[key] = weights[key] if asked is None else asked
    cfg.model = dict(
        type='mmprune.DistilledModel',
        student=dict(
            type='mmprune.FakeQuantizedModel',
            model=pruned_model_config(model, str(pruned)),
            scheme=dict(
                group_size=args.group_size, activations=args.activations
            ),
        ),
        teacher=model,
        teacher_checkpoint=dense,
        **words.distillation(
            words.layers_of(task), weights, args.temperature or temperature
        ),
    )
    cfg.load_from = str(pruned)
    if args.max_grad_norm is not None:
        cfg.optim_wrapper.clip_grad = dict(max_norm=args.max_grad_norm)
    words.with_words(cfg, args)
    return cfg


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the step."""
    args = parse_args(argv)
    if args.fast and args.preset:
        raise ValueError('--fast and --preset are two modes; give one of them')
    source = words.find_pruned(args)
    task = words.task_of(source)
    dense = named_runs.about(source)['baseline']
    pruned = words.checkpoint_of(source).resolve()
    cfg = config_from(args, task, pruned, dense)
    folder = words.begin(args, words.QKD)
    about = dict(
        step='quantization in training',
        flags={k: v for k, v in vars(args).items() if v is not None},
        source=str(pruned),
        baseline=dense,
        seed=args.seed,
    )
    words.run_training(cfg, folder, about, task)
    best = sorted(folder.glob('best_*.pth')) or [training.trained(folder)]
    quantize(cfg, best[-1], folder)
    words.finish(folder, about, folder / NAME)


if __name__ == '__main__':
    main()
