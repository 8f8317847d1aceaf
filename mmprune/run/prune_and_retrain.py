"""Prunes, trains and evaluates: what ``tools/prune_and_retrain.py`` does."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config

from ..checkpoints.loading import load_checkpoint
from ..checkpoints.normalization import compare_normalization
from ..checkpoints.reading import trust_checkpoints
from ..family import use_checkpoint
from . import folder as run_folder
from . import launch, report_html, training, workflow
from .cli import ProgressBar, load_config, stoppable
from .config_file import config_path
from .console import metrics_that_matter
from .options import (
    DeviceOptions,
    LaunchOptions,
    PruningOptions,
    RunOptions,
    TrainingOptions,
)
from .report import summary_table
from .variants import chosen

# The commands, beside the package.
TOOLS = Path(__file__).resolve().parents[2] / 'tools'


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
    log = _log if launch.is_first() else lambda _: None
    launcher = launch.choose_launcher(launching.launcher, devices.gpus, log)
    launch.set_visible_devices(devices.gpu_ids, launcher, log, devices.gpus)
    check(pruning, training_options)
    trust_checkpoints(pruning.trust_checkpoint)
    folder, trains = Path(run.output_dir), training_options.fine_tune
    cfg = load_config(run.config, run.cfg_options)
    use_checkpoint(cfg, run.checkpoint)
    allowed = run.force or run.resume or run.dry_run
    if trains and not allowed:
        allowed = is_untrained(run, pruning, cfg, training_options)
    run_folder.check_output(folder, '--output-dir', allowed)
    with stoppable(lambda: how_to_go_on(training_options, folder)):
        dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg')
        team = launch.start(launcher, dist_cfg, log)
        job = Run(run, pruning, training_options, cfg, launcher, team, log)
        job.preview() if run.dry_run else job()


def is_untrained(
    run: RunOptions,
    pruning: PruningOptions,
    cfg: Config,
    options: TrainingOptions,
) -> bool:
    """Returns whether the same pruning is there and waits to be trained so.

    The commands of the guide prune, then fine-tune, then retrain into one
    folder: each goes on from the pruned models.
    """
    folder = Path(run.output_dir)
    recipe = training.recipe_of(options).folder
    if any(map(training.last_checkpoint, folder.glob(f'{recipe}*'))):
        return False
    return run_folder.finished_run(folder, asked_for(run, pruning, cfg))


def asked_for(run: RunOptions, pruning: PruningOptions, cfg: Config) -> dict:
    """Returns what decides on the pruned models, as the report keeps it."""
    return dict(
        config=str(cfg.filename),
        checkpoint=run.checkpoint,
        cfg_options=list(run.cfg_options) or None,
        options=vars(pruning),
    )


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
    launch.check_device(pruning.device)


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
        self.variants = chosen(pruning.mode)
        self.pruned = {n: self.folder / names[n] for n in self.variants}

    def preview(self) -> None:
        """Prints what would be cut; writes nothing."""
        with ProgressBar(
            3 + (self.pruning.mode != 'unstructured')
        ) as progress:
            progress('loading the checkpoint')
            model, _ = workflow.load_dense(self.cfg, self.dense, self.pruning)
            text = workflow.preview(self.cfg, model, self.pruning, progress)
        self.log(f'{text}\n--dry-run: nothing was written')

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
        self.team.first(lambda: self.prune(stage))
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

    def prune(self, stage: training.Stage | None) -> None:
        """Writes the pruned models, unless they are there already."""
        asked = asked_for(self.run, self.pruning, self.cfg)
        keeps = not self.run.force and run_folder.finished_run(
            self.folder, asked
        )
        if keeps:
            self.log(f'the pruned models are in {self.folder} already')
            return
        steps = 5 + sum(v.steps for v in self.variants.values())
        with run_folder.begun(self.folder), ProgressBar(steps) as progress:
            progress('loading the checkpoint')
            model, meta = workflow.load_dense(
                self.cfg, self.dense, self.pruning
            )
            compare_normalization(self.cfg, meta, self.dense, self.log)
            if stage:
                training.check_parts(stage, model)
            result = workflow.prune(self.cfg, model, self.pruning, progress)
            progress('writing')
            result.report.update(asked)
            run_folder.write(
                result.models,
                result.plans,
                result.report,
                self.cfg,
                meta,
                self.folder,
            )

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
        name = Path(self.cfg.filename).name
        good = f'the pruned models in {self.folder}'
        with run_folder.begun(place, name, good=good):
            path = self.team.first(
                lambda: training.prepare(
                    stage,
                    self.pruned[variant],
                    place,
                    self.run.resume,
                    self.log,
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
        logs = self.folder / 'evaluation'
        good = f'the models in {self.folder}'
        recipe = training.recipe_of(self.training).folder
        metrics = self.team.first(
            lambda: run_folder.earlier_metrics(self.folder, recipe)
        )
        with run_folder.begun(logs, *models, good=good):
            for name, path in models.items():
                if name not in metrics:
                    metrics[name] = training.evaluate(
                        self.cfg, path, logs / name, self.launcher
                    )
        self.team.first(
            lambda: run_folder.add_to_report(
                self.folder, metrics=metrics, recipe=recipe
            )
        )

    def finish(self, recovered: dict[str, Path]) -> None:
        """Writes the page about the run, sums it up, says how to go on."""
        page = report_html.write(self.folder)
        report = run_folder.read_report(self.folder)
        metrics = report.get('metrics') or {}
        wanted = self.cfg.get('summary_metrics') or ()
        names = metrics_that_matter(list(metrics.values()), wanted)
        print(summary_table(report['models'], metrics, names))
        print(report['notes'])
        weights = [*self.pruned.values(), *recovered.values()]
        names = [os.path.relpath(p.resolve(), self.folder) for p in weights]
        print(f'in {self.folder}: {", ".join(names)}')
        print(f'all about it: {page}')
        test = [sys.executable, str(TOOLS / 'test.py')]
        paths = [
            str(Path(p).resolve())
            for p in (config_path(self.run.config), weights[-1])
        ]
        print(f'next: {shlex.join([*test, *paths])}')


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
