"""Prunes, trains and evaluates: what ``tools/prune_and_retrain.py`` does."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config

from ..checkpoints.loading import load_checkpoint
from ..checkpoints.reading import trust_checkpoints
from ..family import use_checkpoint
from . import folder as run_folder
from . import launch, report_html, training, workflow
from .cli import ProgressBar, load_config, stoppable
from .options import (
    DeviceOptions,
    LaunchOptions,
    PruningOptions,
    RunOptions,
    TrainingOptions,
)
from .report import summary_table
from .variants import chosen


def prune_and_retrain(
    run: RunOptions,
    pruning: PruningOptions,
    training_options: TrainingOptions,
    devices: DeviceOptions,
    launching: LaunchOptions,
) -> None:
    """Runs the command.

    Raises:
        ValueError: If something that was asked for cannot be done.
    """
    launch.set_local_rank(launching.local_rank)
    log = _log if launch.is_first() else _log_nothing
    launcher = launch.choose_launcher(launching.launcher, devices.gpus, log)
    launch.set_visible_devices(list(devices.gpu_ids), launcher, log)
    check(pruning, training_options)
    trust_checkpoints(pruning.trust_checkpoint)
    folder = Path(run.output_dir)
    run_folder.check_output(folder, run.force or run.resume)
    cfg = load_config(run.config, run.cfg_options)
    use_checkpoint(cfg, run.checkpoint)
    with stoppable(lambda: how_to_go_on(training_options, folder)):
        dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg')
        team = launch.start(launcher, dist_cfg, log)
        Run(run, pruning, training_options, cfg, launcher, team, log)()


def check(pruning: PruningOptions, training_options: TrainingOptions) -> None:
    """Refuses options that contradict each other or the machine.

    Raises:
        ValueError: If some do.
    """
    train = training_options.train
    if train not in (None, pruning.mode) and pruning.mode != 'both':
        raise ValueError(
            f'--train {train} needs the {train} model, and --mode '
            f'{pruning.mode} does not make it; change one of them'
        )
    if training_options.amp and not torch.cuda.is_available():
        raise ValueError(
            '--amp needs a CUDA device, and there is none; leave it out'
        )
    workflow.check_device(pruning.device)


def trained_variants(mode: str, train: str | None) -> list[str]:
    """Returns which of the pruned models are trained, in order."""
    asked = train or mode
    if asked != 'both':
        return [asked]
    return ['structured', 'unstructured'] if train else ['structured']


class Run:
    """Prunes, trains and evaluates, on this rank.

    Args:
        run: What it reads and writes.
        pruning: How to prune.
        training_options: How to train.
        cfg: Config of the dense model.
        launcher: As the Runner takes it.
        team: The processes of the run.
        log: Prints a line on rank 0.
    """

    def __init__(
        self,
        run: RunOptions,
        pruning: PruningOptions,
        training_options: TrainingOptions,
        cfg: Config,
        launcher: str,
        team: launch.Team,
        log: Callable[[str], None],
    ) -> None:
        self.run, self.pruning, self.training = run, pruning, training_options
        self.cfg, self.launcher, self.team, self.log = cfg, launcher, team, log
        self.folder, self.dense = Path(run.output_dir), Path(run.checkpoint)
        names = run_folder.checkpoint_names(cfg)
        self.pruned = {
            name: self.folder / names[name] for name in chosen(pruning.mode)
        }

    def __call__(self) -> None:
        """Does all that was asked for."""
        stage = None
        if self.training.fine_tune:
            stage = training.check(
                self.cfg,
                self.dense,
                self.training,
                self.pruning.seed,
                self.team.world_size,
            )
        self.team.first(self.prune)
        self.check_ranks()
        recovered = {}
        asked = trained_variants(self.pruning.mode, self.training.train)
        for variant in asked if stage else ():
            name = f'recovered_{variant}' if recovered else 'recovered'
            place = self.folder / run_folder.training_folder(
                stage.recipe.folder, variant, first=not recovered
            )
            recovered[name] = self.train(stage, variant, place)
        evaluates = self.run.eval
        if evaluates or (evaluates is None and recovered):
            self.evaluate({'dense': self.dense, **self.pruned, **recovered})
        self.team.first(lambda: self.finish(recovered))

    def prune(self) -> None:
        """Writes the pruned models, unless ``--resume`` finds them."""
        asked = dict(
            config=str(self.cfg.filename),
            checkpoint=self.run.checkpoint,
            cfg_options=list(self.run.cfg_options) or None,
            options=vars(self.pruning),
        )
        if self.run.resume and run_folder.finished_run(self.folder, asked):
            self.log(f'--resume: the pruned models are in {self.folder}')
            return
        with ProgressBar(total=5 + len(self.pruned) + 1) as progress:
            progress('loading the checkpoint')
            model, meta = workflow.load_dense(
                self.cfg, self.dense, self.pruning
            )
            result = workflow.prune(self.cfg, model, self.pruning, progress)
            progress('writing')
            result.report.update(asked)
            written = run_folder.write(
                result.models,
                result.plans,
                result.report,
                self.cfg,
                meta,
                self.folder,
            )
        print(summary_table(result.report['models']))
        print(result.report['notes'])
        for path in written.values():
            print(f'wrote {path}')

    def check_ranks(self) -> None:
        """Checks that all ranks read the same models.

        Raises:
            ValueError: If one does not.
        """
        if self.team.world_size == 1:
            return
        for name, path in self.pruned.items():
            found = training.digest(load_checkpoint(path))
            self.team.same(found, f'{name} model')
            self.log(
                f'{name}: {self.team.world_size} ranks hold the same plan and '
                f'weights, sha256 {found[:16]}'
            )

    def train(self, stage: training.Stage, variant: str, place: Path) -> Path:
        """Trains a pruned model; returns its last checkpoint."""
        self.log(
            f'training the {variant} model in {place}: {stage.length}, '
            f'learning rate x{stage.recipe.lr_factor}'
        )
        path = self.team.first(
            lambda: training.prepare(
                stage, self.pruned[variant], place, self.run.resume, self.log
            )
        )
        training.run_training(path, self.launcher, self.run.resume)
        # Rank 0 may still be writing when the others are through.
        last = self.team.first(lambda: training.trained(place))
        self.log(f'trained: {last}')
        return last

    def evaluate(self, models: dict[str, Path]) -> None:
        """Adds the metrics of models, by name, to the report."""
        if self.cfg.get('test_evaluator') is None:
            self.log('not evaluated: the config has no test_evaluator')
            return
        problem = training.data_problem(self.cfg, 'test_dataloader')
        if problem:
            self.log(f'not evaluated: {problem}')
            return
        metrics = {
            name: training.evaluate(
                self.cfg,
                path,
                self.folder / 'evaluation' / name,
                self.launcher,
            )
            for name, path in models.items()
        }
        self.team.first(
            lambda: run_folder.add_to_report(self.folder, metrics=metrics)
        )
        self.log(run_folder.metrics_table(metrics))

    def finish(self, recovered: dict[str, Path]) -> None:
        """Writes the page about the run and prints how to go on."""
        self.log(f'wrote {report_html.write(self.folder)}')
        weights = [*self.pruned.values(), *recovered.values()][-1]
        print(f'next: python tools/test.py {self.run.config} {weights}')


def how_to_go_on(options: TrainingOptions, folder: Path) -> str:
    """Returns what is safe when a run is stopped, and how to resume it."""
    words = [w for w in sys.argv if w not in ('--resume', '--force')]
    again = f'go on with: python {shlex.join(words)} --resume'
    recipe = training.recipe_of(options).folder
    # The one that is trained last comes first.
    places = sorted(folder.glob(f'{recipe}_*')) + [folder / recipe]
    for place in places if options.fine_tune else ():
        last = training.last_checkpoint(place)
        if last is not None:
            return f'the last good checkpoint is {last}; {again}'
    if (folder / 'report.json').exists():
        return f'the pruned models are in {folder}; {again}'
    return f'nothing was written yet; {again}'


def _log(line: str) -> None:
    print(line, flush=True)


def _log_nothing(_: str) -> None:
    pass
