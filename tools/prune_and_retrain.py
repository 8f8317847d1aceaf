"""Prunes a trained model: a config and a checkpoint go in, a smaller model
that a stock mmengine Runner loads comes out.

    python tools/prune_and_retrain.py CONFIG CHECKPOINT --pruning-ratio 0.3
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmprune import run_folder, workflow  # noqa: E402
from mmprune.cli import Stages, fail_in_one_sentence, load_config  # noqa: E402
from mmprune.report import summary_table  # noqa: E402

DEFAULT_OUTPUT = './pruned_models'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        description='Prune a trained model of an OpenMMLab config.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('config', help='config of the dense model')
    add('checkpoint', help='trained weights of the dense model')
    add(
        '--pruning-ratio',
        type=float,
        default=0.3,
        help='fraction to remove, in [0, 1)',
    )
    add('--output-dir', default=DEFAULT_OUTPUT, help='where results go')
    add('--force', action='store_true', help='overwrite another run there')
    add(
        '--mode',
        choices=('both', 'structured', 'unstructured'),
        default='both',
    )
    add('--importance', choices=tuple(workflow.CRITERIA), default='l1')
    add('--scope', choices=('global', 'layer'), default='global')
    add(
        '--target',
        choices=('units', 'params', 'macs'),
        default='units',
        help='what the ratio counts in structured pruning',
    )
    add('--round-to', type=int, default=1, help='kept widths: a multiple')
    add(
        '--min-keep',
        type=int,
        default=1,
        help='channels or neurons that every group keeps',
    )
    add(
        '--protect',
        action='append',
        default=[],
        metavar='REGEX',
        help='groups and weights that stay dense; may be repeated',
    )
    add(
        '--prune-frozen',
        action='store_true',
        help='prune the stem and stages that training freezes, too',
    )
    add('--ann-file', help='info file of keyframes to calibrate on')
    add('--latency-runs', type=int, default=5, help='timed runs, 0: none')
    add('--seed', type=int, default=0, help='of --importance random')
    add('--device', default='cpu', help='cpu or cuda[:N]')
    add(
        '--trust-checkpoint',
        action='store_true',
        help='unpickle a checkpoint that the safe loader refuses',
    )
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', help='as in mmengine')
    training = parser.add_argument_group('training (not in this version)')
    add = training.add_argument
    add('--fine-tune', action='store_true')
    add('--retrain', action='store_true')
    add('--fine-tune-epochs', type=int, default=6)
    add('--gpus', type=int, default=1)
    add('--gpu-ids', type=int, nargs='+')
    add(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        default='none',
    )
    add('--local-rank', '--local_rank', type=int, default=0)
    return parser.parse_args(argv)


def refuse_training(args: argparse.Namespace) -> None:
    """Says which flags wait for the training workflow."""
    asked = [
        flag
        for flag, given in (
            ('--fine-tune', args.fine_tune),
            ('--retrain', args.retrain),
            (f'--gpus {args.gpus}', args.gpus != 1),
            ('--gpu-ids', len(args.gpu_ids or ()) > 1),
            (f'--launcher {args.launcher}', args.launcher != 'none'),
        )
        if given
    ]
    if asked:
        raise ValueError(
            f'{", ".join(asked)}: this version prunes only; train the '
            'result with a stock mmengine Runner and the config written '
            'beside it, training from this command comes with a later one'
        )


def options_from(args: argparse.Namespace) -> workflow.Options:
    """Returns the flags as options of the workflow."""
    return workflow.Options(
        sparsity=args.pruning_ratio,
        importance=args.importance,
        scope=args.scope,
        target=args.target,
        round_to=args.round_to,
        min_keep=args.min_keep,
        protect=tuple(args.protect),
        prune_frozen=args.prune_frozen,
        mode=args.mode,
        seed=args.seed,
        device=args.device,
        latency_runs=args.latency_runs,
        ann_file=args.ann_file,
        trust_checkpoint=args.trust_checkpoint,
    )


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    args = parse_args(argv)
    refuse_training(args)
    options = options_from(args)
    if not args.output_dir:
        raise ValueError('--output-dir is empty; give a folder to write to')
    folder = Path(args.output_dir)
    workflow.check_options(options)
    run_folder.check_output(folder, args.force)
    cfg = load_config(args.config, args.cfg_options)
    with Stages(total=4 + 2 * 3) as stage:
        stage('loading the checkpoint')
        model, meta = workflow.load_dense(cfg, Path(args.checkpoint), options)
        result = workflow.prune(cfg, model, options, stage)
        stage('writing')
        written = run_folder.write(
            result.models, result.plans, result.report, cfg, meta, folder
        )
    print(summary_table(result.report['models']))
    print(result.report['notes'])
    for path in written.values():
        print(f'wrote {path}')
    weights = [p for p in written.values() if p.suffix == '.pth']
    print(f'next: python tools/test.py {args.config} {weights[-1]}')


if __name__ == '__main__':
    main()
