"""Step 8 of the guide: KGSP and MSP, pruning while it is fine-tuned.

    python tools/guides/8_pruning_with_finetuning.py --fast

Writes models/pruning_with_finetuning_YYYYMMDD_HHMMSS/. See
docs/prune_distilbert.md.
"""

import argparse
from typing import Any

from distilbert_guide import words
from mmengine.config import Config

from mmprune.checkpoints.writing import without_pretrained
from mmprune.run.cli import fail_in_one_sentence
from mmprune.run.flags import ShowDefaults

OURS = ('l2', 'kd_grad', 'l2+kd_grad')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Returns the flags; what was not given is ``None``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=ShowDefaults
    )
    add = parser.add_argument
    add('--fast', action='store_true', help='the fast mode of the guide')
    add(
        '--preset',
        choices=('conservative', 'aggressive'),
        help='settings of the guide for accuracy or size',
    )
    add('--num_epochs', type=int, help='epochs')
    add('--batch_size', type=int, help='sentences of a step')
    add('--learning_rate', type=float, help='learning rate')
    add('--importance_mode', choices=OURS, help='what decides on units')
    add('--lambda_mag', type=float, help='weight of the L2 norm')
    add('--lambda_grad', type=float, help='weight of the gradient')
    add('--pruning_window_steps', type=int, help='steps it looks back on')
    add(
        '--enable_multi_granularity',
        action=argparse.BooleanOptionalAction,
        help='targets of their own for heads and neurons',
    )
    add('--head_final_sparsity', type=float, help='fraction of heads')
    add('--ffn_final_sparsity', type=float, help='fraction of neurons')
    add('--final_sparsity', type=float, help='of all units in one ranking')
    add('--baseline', help='dense fine-tuned checkpoint, start and teacher')
    add('--resume', action='store_true', help='go on with the last run')
    words.add_task_flags(add)
    return parser.parse_args(argv)


def with_pruning(cfg: Config, args: Any, tiny: bool) -> None:
    """Writes the flags of the pruning into its hook.

    Raises:
        ValueError: If some have no effect together.
    """
    (hook,) = (
        h
        for h in cfg.custom_hooks
        if h['type'] == 'mmprune.GradualPruningHook'
    )
    schedule, pruner = hook['schedule'], hook['pruner']
    both = args.enable_multi_granularity
    if both is None:
        both = not pruner.get('together', False)
    apart = (args.head_final_sparsity, args.ffn_final_sparsity)
    if not both and apart != (None, None):
        raise ValueError(
            '--head_final_sparsity and --ffn_final_sparsity have no effect '
            'on one ranking of all units; add --enable_multi_granularity or '
            'give --final_sparsity'
        )
    if both and args.final_sparsity is not None:
        raise ValueError(
            '--final_sparsity is that of one ranking of all units; add '
            '--no-enable_multi_granularity'
        )
    pruner['together'] = not both
    final = schedule['final']
    if both:
        known = (
            final if isinstance(final, dict) else dict(head=0.3, neuron=0.2)
        )
        asked = dict(zip(('head', 'neuron'), apart, strict=True))
        given = {k: v for k, v in asked.items() if v is not None}
        schedule['final'] = {**known, **given}
    else:
        known = 0.2 if isinstance(final, dict) else final
        schedule['final'] = args.final_sparsity or known
    importance = pruner['importance']
    if args.importance_mode is not None:
        mixed = args.importance_mode == 'l2+kd_grad'
        importance['lambda_mag'] = float(args.importance_mode != 'kd_grad')
        importance['lambda_grad'] = float(args.importance_mode != 'l2')
        if mixed:
            importance |= dict(lambda_mag=0.5, lambda_grad=0.5)
    for name in ('lambda_mag', 'lambda_grad'):
        if getattr(args, name) is not None:
            importance[name] = getattr(args, name)
    if tiny:
        hook |= dict(interval=words.TINY_INTERVAL, window=words.TINY_WINDOW)
    if args.pruning_window_steps is not None:
        hook['window'] = args.pruning_window_steps


def config_from(args: Any, task: Config, dense: str) -> Config:
    """Returns the config of the training that the flags describe."""
    name = 'kgsp_fast' if args.fast else f'kgsp_{args.preset or "full"}'
    mode = words.mode_config(name)
    cfg = words.with_mode(task, mode, words.PRUNED)
    model = without_pretrained(task.model.to_dict())
    weights, temperature = words.weights_of(mode)
    cfg.model = dict(
        type='mmprune.DistilledModel',
        student=model,
        teacher=model,
        teacher_checkpoint=dense,
        **words.distillation(words.layers_of(task), weights, temperature),
    )
    cfg.load_from = dense
    with_pruning(cfg, args, words.is_tiny(task))
    words.with_words(cfg, args)
    return cfg


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the step."""
    args = parse_args(argv)
    if args.fast and args.preset:
        raise ValueError('--fast and --preset are two modes; give one of them')
    task = words.task_config(args)
    dense = words.baseline(args, task)
    cfg = config_from(args, task, str(dense))
    folder = words.begin(args, words.PRUNED)
    about = dict(
        step='pruning with fine-tuning',
        flags={k: v for k, v in vars(args).items() if v is not None},
        baseline=str(dense),
        seed=args.seed,
    )
    words.run_training(cfg, folder, about, task)
    words.save_folder_of(task, folder / 'pruned.pth', folder / 'huggingface')
    words.finish(folder, about, folder / 'pruned.pth')


if __name__ == '__main__':
    main()
