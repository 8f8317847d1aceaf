"""Prunes a trained model and trains the result: a config and a checkpoint go
in, a smaller model that a stock mmengine Runner loads comes out.

    python tools/prune_and_retrain.py CONFIG CHECKPOINT --pruning-ratio 0.3
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Libraries ask for CUDA while they are imported. Without this the driver
# would start then, and --gpu-ids come too late.
os.environ.setdefault('PYTORCH_NVML_BASED_CUDA_CHECK', '1')

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402

from mmprune.checkpoints.reading import load_checkpoint_file, trust_checkpoints  # noqa: E402
from mmprune.run import (  # noqa: E402
    folder as run_folder,
)
from mmprune.run import (  # noqa: E402
    launch,
    report_html,
    training,
    workflow,
)
from mmprune.run.cli import (  # noqa: E402
    Stages,
    fail_in_one_sentence,
    load_config,
    stoppable,
)
from mmprune.run.report import summary_table  # noqa: E402

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
    add('--resume', action='store_true', help='go on where it was stopped')
    modes = ('both', 'structured', 'unstructured')
    add('--mode', choices=modes, default='both', help='what to make')
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
    add('--seed', type=int, default=0, help='of training and random criterion')
    add('--device', default='cpu', help='where to prune: cpu or cuda[:N]')
    add(
        '--trust-checkpoint',
        action='store_true',
        help='unpickle a checkpoint that the safe loader refuses',
    )
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', help='as in mmengine')
    _add_training(parser.add_argument_group('training').add_argument)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def _add_training(add) -> None:
    add('--fine-tune', action='store_true', help='train the pruned model')
    add(
        '--retrain',
        action='store_true',
        help='with --fine-tune: from epoch 0, with a larger learning rate',
    )
    add('--fine-tune-epochs', type=int, default=6, help='of either training')
    add(
        '--train',
        choices=('structured', 'unstructured', 'both'),
        help='which models to train; by default the structured one, if any',
    )
    add(
        '--distill',
        nargs='?',
        type=float,
        const=1.0,
        metavar='WEIGHT',
        help='learn from the dense model too, 1 if no weight is given',
    )
    add('--amp', action='store_true', help='mixed precision')
    add(
        '--auto-scale-lr',
        action='store_true',
        help="learning rate by the config's auto_scale_lr",
    )
    add(
        '--max-keep-ckpts',
        type=int,
        default=-1,
        help='checkpoints to keep, -1: all',
    )
    add(
        '--eval',
        action=argparse.BooleanOptionalAction,
        default=None,
        help='evaluate all models at the end; by default after a training',
    )
    add('--gpus', type=int, default=1, help='number of devices')
    add('--gpu-ids', type=int, nargs='+', help='their numbers')
    add('--launcher', choices=launch.LAUNCHERS, default='none')
    add('--local-rank', '--local_rank', type=int, default=0)


def check_flags(args: argparse.Namespace) -> None:
    """Refuses flags that contradict each other.

    Raises:
        ValueError: If some do.
    """
    if not args.output_dir:
        raise ValueError('--output-dir is empty; give a folder to write to')
    if args.resume and args.force:
        raise ValueError(
            '--resume keeps what --force removes; give one of them'
        )
    asked = [
        flag
        for flag, given in (
            ('--retrain', args.retrain),
            ('--train', args.train),
            ('--distill', args.distill is not None),
            ('--amp', args.amp),
            ('--auto-scale-lr', args.auto_scale_lr),
        )
        if given
    ]
    if asked and not args.fine_tune:
        raise ValueError(
            f'{", ".join(asked)} goes with --fine-tune, without which '
            'nothing is trained; add it'
        )
    if args.fine_tune_epochs < 1 or args.gpus < 1:
        raise ValueError(
            '--fine-tune-epochs and --gpus are at least 1, found '
            f'{args.fine_tune_epochs} and {args.gpus}'
        )
    if args.distill is not None and not args.distill > 0:
        raise ValueError(
            f'--distill takes a positive weight, found {args.distill}'
        )
    if args.train not in (None, args.mode) and args.mode != 'both':
        raise ValueError(
            f'--train {args.train} needs the {args.train} model, and --mode '
            f'{args.mode} does not make it; change one of them'
        )
    if args.amp and not torch.cuda.is_available():
        raise ValueError(
            '--amp needs a CUDA device, and there is none; leave it out'
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


def wanted_from(args: argparse.Namespace) -> training.Wanted | None:
    """Returns the flags about training, ``None`` without ``--fine-tune``."""
    if not args.fine_tune:
        return None
    return training.Wanted(
        training.RETRAIN if args.retrain else training.FINE_TUNE,
        args.fine_tune_epochs,
        seed=args.seed,
        amp=args.amp,
        auto_scale_lr=args.auto_scale_lr,
        distill=args.distill,
        max_keep=args.max_keep_ckpts,
    )


def trained_kinds(args: argparse.Namespace) -> list[str]:
    """Returns which of the pruned models are trained, in order."""
    asked = args.train or args.mode
    if args.train == 'both':
        return ['structured', 'unstructured']
    return ['structured' if asked == 'both' else asked]


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    args = parse_args(argv)
    say = _say if launch.is_first() else _say_nothing
    launcher = launch.choose_launcher(args.launcher, args.gpus, say)
    launch.set_visible_devices(args.gpu_ids, launcher, say)
    check_flags(args)
    workflow.check_options(options_from(args))
    trust_checkpoints(args.trust_checkpoint)
    folder = Path(args.output_dir)
    run_folder.check_output(folder, args.force or args.resume)
    cfg = load_config(args.config, args.cfg_options)
    with stoppable(lambda: _how_to_go_on(args, folder)):
        dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg')
        team = launch.start(launcher, dist_cfg, say)
        Run(args, cfg, folder, launcher, team, say)()


class Run:
    """Prunes, trains and evaluates, on this rank.

    Args:
        args: The flags.
        cfg: Config of the dense model.
        folder: Where results go.
        launcher: As the Runner takes it.
        team: The processes of the run.
        say: Prints a line on rank 0.
    """

    def __init__(self, args, cfg: Config, folder: Path, launcher, team, say):
        self.args, self.cfg, self.folder = args, cfg, folder
        self.launcher, self.team, self.say = launcher, team, say
        self.dense = Path(args.checkpoint)
        self.options = options_from(args)
        names = run_folder.checkpoint_names(cfg)
        self.pruned = {
            kind: folder / name
            for kind, name in names.items()
            if args.mode in ('both', kind)
        }

    def __call__(self) -> None:
        """Does all that was asked for."""
        wanted = wanted_from(self.args)
        stage = None
        if wanted is not None:
            stage = training.check(
                self.cfg, self.dense, wanted, self.team.world_size
            )
        self.team.first(self.prune)
        self.prove_same()
        recovered = {}
        for kind in trained_kinds(self.args) if stage else ():
            name = f'recovered_{kind}' if recovered else 'recovered'
            suffix = '_unstructured' if recovered else ''
            place = self.folder / (wanted.recipe.folder + suffix)
            recovered[name] = self.train(stage, kind, place)
        asked = self.args.eval
        if asked or (asked is None and recovered):
            self.evaluate(recovered)
        self.team.first(lambda: self.finish(recovered))

    def prune(self) -> None:
        """Writes the pruned models, unless ``--resume`` finds them."""
        args, cfg = self.args, self.cfg
        asked = dict(
            config=str(cfg.filename),
            checkpoint=args.checkpoint,
            cfg_options=args.cfg_options,
            options=vars(self.options),
        )
        if args.resume and run_folder.finished_run(self.folder, asked):
            self.say(f'--resume: the pruned models are in {self.folder}')
            return
        with Stages(total=4 + 2 * 3) as stage:
            stage('loading the checkpoint')
            model, meta = workflow.load_dense(cfg, self.dense, self.options)
            result = workflow.prune(cfg, model, self.options, stage)
            stage('writing')
            result.report.update(asked)
            written = run_folder.write(
                result.models,
                result.plans,
                result.report,
                cfg,
                meta,
                self.folder,
            )
        print(summary_table(result.report['models']))
        print(result.report['notes'])
        for path in written.values():
            print(f'wrote {path}')

    def prove_same(self) -> None:
        """Checks that all ranks read the same models."""
        if self.team.world_size == 1:
            return
        for kind, path in self.pruned.items():
            found = training.digest(load_checkpoint_file(path))
            self.team.same(found, f'{kind} model')
            self.say(
                f'{kind}: {self.team.world_size} ranks hold the same plan and '
                f'weights, sha256 {found[:16]}'
            )

    def train(self, stage: training.Stage, kind: str, place: Path) -> Path:
        """Trains a pruned model; returns its last checkpoint."""
        wanted = stage.wanted
        self.say(
            f'training the {kind} model in {place}: {wanted.epochs} epochs '
            f'of {stage.length.epoch_length} iterations, learning rate '
            f'x{wanted.recipe.lr_factor}'
        )
        path = self.team.first(
            lambda: training.prepare(
                stage, self.pruned[kind], place, self.args.resume, self.say
            )
        )
        training.run_training(path, self.launcher, self.args.resume)
        # Rank 0 may still be writing when the others are through.
        last = self.team.first(lambda: training.trained(place))
        self.say(f'trained: {last}')
        return last

    def evaluate(self, recovered: dict[str, Path]) -> None:
        """Adds the metrics of all models to the report."""
        if self.cfg.get('test_evaluator') is None:
            self.say('not evaluated: the config has no test_evaluator')
            return
        problem = training.data_problem(self.cfg, 'test_dataloader')
        if problem:
            self.say(f'not evaluated: {problem}')
            return
        metrics = {}
        models = {'dense': self.dense, **self.pruned, **recovered}
        for name, path in models.items():
            work_dir = self.folder / 'evaluation' / name
            metrics[name] = training.evaluate(
                self.cfg, path, work_dir, self.launcher
            )
        self.team.first(
            lambda: run_folder.add_to_report(self.folder, metrics=metrics)
        )
        self.say(run_folder.metrics_table(metrics))

    def finish(self, recovered: dict[str, Path]) -> None:
        """Writes the page about the run and says how to go on."""
        self.say(f'wrote {report_html.write(self.folder)}')
        weights = [*self.pruned.values(), *recovered.values()][-1]
        print(f'next: python tools/test.py {self.args.config} {weights}')


def _how_to_go_on(args: argparse.Namespace, folder: Path) -> str:
    """What is safe when the run is stopped, and the command to resume."""
    words = [w for w in sys.argv if w not in ('--resume', '--force')]
    again = f'go on with: python {shlex.join(words)} --resume'
    recipe = training.RETRAIN if args.retrain else training.FINE_TUNE
    for name in (f'{recipe.folder}_unstructured', recipe.folder):
        last = training.last_checkpoint(folder / name)
        if args.fine_tune and last is not None:
            return f'the last good checkpoint is {last}; {again}'
    if (folder / 'report.json').exists():
        return f'the pruned models are in {folder}; {again}'
    return f'nothing was written yet; {again}'


def _say(line: str) -> None:
    print(line, flush=True)


def _say_nothing(_: str) -> None:
    pass


if __name__ == '__main__':
    main()
