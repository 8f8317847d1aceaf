"""Writes the smaller model when a pruning in training is done."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..atomic_file import save_json
from ..checkpoints.loading import load_weights
from ..checkpoints.reading import load_checkpoint_file
from ..checkpoints.writing import save_pruned
from ..checks import check_whole
from ..cost import cost_rows
from ..family import call
from ..plan import PruningPlan
from ..pruners.verify import masked_difference, refuse_difference
from ..registry import HOOKS
from ..removed import group_rows, kind_rows
from ..sparsifying.runner_parts import averages_of, plain_model
from ..surgery import apply_plan
from ..version import __version__
from .gradual_pruning_hook import MASKED_PLAN, GradualPruningHook


@dataclass
class _Made:
    """What a training has pruned, for the files.

    Args:
        model: The masked model, on the CPU.
        plan: What is masked.
        title: Of the report.
        options: How it was pruned.
        groups: All groups.
        sections: Tables and curves of the report.
        meta: Of the checkpoint.
    """

    model: nn.Module
    plan: PruningPlan
    title: str
    options: Any
    groups: list
    sections: list = field(default_factory=list)
    meta: dict = field(default_factory=dict)


@HOOKS.register_module()
class ExportHook(Hook):
    """Removes what was pruned in training, at its end.

    Writes ``pruned.pth``, ``plan.json`` and ``report.json``; of the averaged
    model, if there is one, because that is what was validated.
    :class:`IterativePruningLoop` registers it; beside a
    :class:`GradualPruningHook` a config names it.

    Args:
        latency_runs: Timed forwards of each model, 0 for none.
        best: Whether the best checkpoint is taken in place of the last, where
            ``save_best`` of the checkpoint hook has chosen one.
    """

    def __init__(self, latency_runs: int = 5, best: bool = False) -> None:
        check_whole('latency_runs', latency_runs, 0)
        self.latency_runs, self.best = latency_runs, best

    def after_train(self, runner: Runner) -> None:
        """Writes the files, on one rank.

        Raises:
            ValueError: If the smaller model computes something else.
        """
        loop = runner.train_loop
        gradual = [
            h for h in runner.hooks if isinstance(h, GradualPruningHook)
        ]
        if not gradual and not hasattr(loop, 'growth'):
            raise ValueError(
                'ExportHook goes with IterativePruningLoop, which registers '
                'it, or with GradualPruningHook, and training goes by '
                f'{type(loop).__name__}; leave it out of the config'
            )
        problem = ['']
        if is_main_process():
            try:
                if gradual:
                    self._export(runner, self._of_hook(runner, gradual[0]))
                elif loop.finished:
                    final = self._export(runner, _of_loop(runner))
                    loop.results.final = final
                    loop.results.write()
            except ValueError as error:
                problem = [str(error)]
        # The others must not wait for a rank that has failed.
        broadcast_object_list(problem)
        if problem[0]:
            raise ValueError(problem[0])

    def _of_hook(self, runner: Runner, hook: GradualPruningHook) -> _Made:
        model, plan = _trained(runner), hook.growth.plan()
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        path = _best_checkpoint(runner) if self.best else None
        if path is not None:
            loaded = load_checkpoint_file(path)
            load_weights(model, loaded, path)
            found = loaded['meta'].get(MASKED_PLAN)
            plan = PruningPlan.from_dict(found) if found else plan
            meta |= {k: loaded['meta'][k] for k in ('epoch', 'iter')}
            runner.logger.info(f'ExportHook takes {path}')
        counts = kind_rows(group_rows(plan, hook.growth.groups))
        removed = ', '.join(
            f'{1 - row["kept"] / row["units"]:.0%} of {row["granularity"]}s'
            for row in counts
        )
        return _Made(
            model,
            plan,
            f'{runner.experiment_name}: {removed or "weights"} pruned in '
            'training',
            {
                **plan.provenance,
                'interval': hook.interval,
                'window': hook.window,
            },
            hook.growth.groups,
            meta=meta,
        )

    def _export(self, runner: Runner, made: _Made) -> dict[str, Any]:
        folder, plan = Path(runner.work_dir), made.plan
        pruned = copy.deepcopy(made.model)
        apply_plan(pruned, plan)
        data = _batch(runner)
        difference = masked_difference(
            made.model, plan, lambda model: call(model, data, 'tensor')
        )
        refuse_difference(difference)
        structured = plan.groups or not plan.sparse
        kind = 'structured' if structured else 'unstructured'
        sample = _first(data)
        rows = cost_rows(
            {'dense': made.model, kind: pruned},
            lambda model: call(model, sample, 'tensor'),
            self.latency_runs,
        )
        # The copy that stands for the dense model is masked already.
        rows['dense']['nonzero'] = rows['dense']['params']
        path = folder / 'pruned.pth'
        dataset = runner.train_loop.dataloader.dataset
        meta = dict(made.meta)
        if getattr(dataset, 'metainfo', None) is not None:
            meta['dataset_meta'] = dataset.metainfo
        save_pruned(pruned, plan, path, runner.cfg, meta)
        plan.save(folder / 'plan.json')
        final = dict(
            models=rows, masked_difference=difference, exported=str(path)
        )
        save_json(_report(runner, made, final), folder / 'report.json')
        dense, small = rows.values()
        runner.logger.info(
            f'{path}: params {dense["params"]:,} -> {small["params"]:,}, '
            f'MACs {dense["macs"]:,} -> {small["macs"]:,}, outputs differ by '
            f'{difference:.1e}'
        )
        return final


def _of_loop(runner: Runner) -> _Made:
    loop = runner.train_loop
    options = loop.plan
    plan = loop.growth.plan(
        dict(
            method='iterative pruning',
            options=options.to_dict(),
            rewind_checksum=loop.rewind_file.checksum,
            mmprune=__version__,
        )
    )
    method = 'decay' if options.decay is not None else 'at once'
    met = loop.results.rounds[-1]['met']
    sparsity = ', '.join(f'{v:.0%} of {k}s' for k, v in met.items())
    return _Made(
        _trained(runner),
        plan,
        f'{runner.experiment_name}: {sparsity} in {options.rounds} rounds '
        f'({method})',
        json.loads(json.dumps(options.to_dict())),
        loop.groups,
        sections(loop.results.rounds),
        dict(epoch=loop.epoch, iter=loop.iter),
    )


def _trained(runner: Runner) -> nn.Module:
    model = (averages_of(runner) or [plain_model(runner)])[0]
    model = copy.deepcopy(model).cpu()
    # A statement: `eval` of mmdet's distilled detectors returns nothing.
    model.eval()
    return model


def _best_checkpoint(runner: Runner) -> str | None:
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            # It is set by the first that is best.
            return getattr(hook, 'best_ckpt_path', None)
    return None


def _batch(runner: Runner) -> Any:
    """A batch of validation data on the CPU, as the model takes it."""
    loader = runner.train_loop.dataloader
    if runner.val_loop is not None:
        loader = runner.val_loop.dataloader
    preprocess = copy.deepcopy(plain_model(runner).data_preprocessor).cpu()
    return preprocess(next(iter(loader)), False)


def _first(data: Any) -> Any:
    """The first sample of a batch."""
    if isinstance(data, Mapping):
        return {key: _first(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return data[:1]
    return data[:1] if isinstance(data, Tensor) and data.ndim else data


def _report(
    runner: Runner, made: _Made, final: dict[str, Any]
) -> dict[str, Any]:
    rows = group_rows(made.plan, made.groups) if made.plan.groups else []
    return dict(
        title=made.title,
        config=str(runner.cfg.get('filename') or ''),
        options=made.options,
        models=final['models'],
        notes=(
            'One forward of one sample of the validation data on the CPU, '
            f'{torch.get_num_threads()} threads, PyTorch {torch.__version__};'
            f' masked and pruned differ by {final["masked_difference"]:.1e}.'
        ),
        versions=dict(mmprune=__version__, torch=torch.__version__),
        groups=rows,
        kinds=kind_rows(rows),
        sections=made.sections,
    )


def sections(rounds: list[dict]) -> list[dict]:
    """Returns tables and curves of the rounds for a report."""
    metrics = list(rounds[0]['metrics'])
    shares = [(k, w) for k in rounds[0]['met'] for w in ('asked', 'met')]
    columns = ['round', *metrics, *(f'{k}s pruned, {w}' for k, w in shares)]
    numbers = [entry['round'] for entry in rounds]
    rows = [
        [
            entry['round'],
            *(_digits(entry['metrics'].get(name)) for name in metrics),
            *(_digits(entry[when][kind]) for kind, when in shares),
        ]
        for entry in rounds
    ]
    layers = [
        [of[0]['group'], *(_digits(w['pruned'] / w['units']) for w in of)]
        for of in zip(*(entry['layers'] for entry in rounds), strict=True)
    ]
    found = [
        dict(
            title='Rounds',
            text='Each round after it was trained and pruned.',
            table=dict(columns=columns, rows=rows),
        ),
        dict(
            title='Sparsity per layer',
            text='Fraction of the units that is pruned, round by round.',
            table=dict(
                columns=['layer', *(f'round {n}' for n in numbers)],
                rows=layers,
            ),
        ),
    ]
    if metrics:
        values = [entry['metrics'].get(metrics[0]) for entry in rounds]
        found[0] |= dict(
            series=[dict(name=metrics[0], x=numbers, y=values)],
            x_label='pruning round',
            y_label=metrics[0],
        )
    return found


def _digits(value: float | None) -> float | None:
    return value if value is None else round(value, 4)
