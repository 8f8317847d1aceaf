"""Writes the smaller model when an iterative pruning is done."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..atomic_file import save_json
from ..checkpoints.writing import save_pruned
from ..checks import check_whole
from ..cost import cost_rows
from ..plan import PruningPlan
from ..pruners.verify import refuse_difference, relative_difference
from ..registry import HOOKS
from ..removed import group_rows, kind_rows
from ..sparsifying.runner_parts import averages_of, plain_model
from ..surgery import apply_plan
from ..version import __version__


@HOOKS.register_module()
class ExportHook(Hook):
    """Removes what :class:`IterativePruningLoop` has pruned, at its end.

    Writes ``pruned.pth``, ``plan.json`` and ``report.json``; of the averaged
    model, if there is one, because that is what was validated. The loop
    registers it, no config needs to.

    Args:
        latency_runs: Timed forwards of each model, 0 for none.
    """

    def __init__(self, latency_runs: int = 5) -> None:
        check_whole('latency_runs', latency_runs, 0)
        self.latency_runs = latency_runs

    def after_train(self, runner: Runner) -> None:
        """Writes the files, on one rank.

        Raises:
            ValueError: If the smaller model computes something else.
        """
        loop = runner.train_loop
        if not hasattr(loop, 'growth'):
            raise ValueError(
                'ExportHook belongs to IterativePruningLoop, which registers '
                f'it, and training goes by {type(loop).__name__}; leave it '
                'out of the config'
            )
        problem = ['']
        if loop.finished and is_main_process():
            model = (averages_of(runner) or [plain_model(runner)])[0]
            masked = copy.deepcopy(model).cpu().eval()
            try:
                loop.results.final = self._export(runner, masked)
                loop.results.write()
            except ValueError as error:
                problem = [str(error)]
        # The others must not wait for a rank that has failed.
        broadcast_object_list(problem)
        if problem[0]:
            raise ValueError(problem[0])

    def _export(self, runner: Runner, masked: nn.Module) -> dict[str, Any]:
        loop, folder = runner.train_loop, Path(runner.work_dir)
        plan = loop.growth.plan(
            dict(
                method='iterative pruning',
                options=loop.plan.to_dict(),
                rewind_checksum=loop.rewind_file.checksum,
                mmprune=__version__,
            )
        )
        pruned = copy.deepcopy(masked)
        apply_plan(pruned, plan)
        inputs = _inputs(runner)
        with torch.no_grad():
            difference = relative_difference(
                masked(inputs, mode='tensor'), pruned(inputs, mode='tensor')
            )
        refuse_difference(difference)
        kind = 'unstructured' if plan.sparse else 'structured'
        rows = cost_rows(
            {'dense': masked, kind: pruned},
            lambda model: model(inputs[:1], mode='tensor'),
            self.latency_runs,
        )
        # The copy that stands for the dense model is masked already.
        rows['dense']['nonzero'] = rows['dense']['params']
        path = folder / 'pruned.pth'
        save_pruned(pruned, plan, path, runner.cfg, _meta(runner))
        plan.save(folder / 'plan.json')
        final = dict(
            models=rows, masked_difference=difference, exported=str(path)
        )
        save_json(_report(runner, plan, final), folder / 'report.json')
        dense, small = rows.values()
        runner.logger.info(
            f'{path}: params {dense["params"]:,} -> {small["params"]:,}, '
            f'MACs {dense["macs"]:,} -> {small["macs"]:,}, outputs differ by '
            f'{difference:.1e}'
        )
        return final


def _inputs(runner: Runner) -> Tensor:
    """A batch of validation images on the CPU, ``[B, C, H, W]``."""
    loader = runner.train_loop.dataloader
    if runner.val_loop is not None:
        loader = runner.val_loop.dataloader
    preprocess = copy.deepcopy(plain_model(runner).data_preprocessor).cpu()
    return preprocess(next(iter(loader)), False)['inputs']


def _meta(runner: Runner) -> dict[str, Any]:
    loop = runner.train_loop
    meta = dict(epoch=loop.epoch, iter=loop.iter)
    if hasattr(loop.dataloader.dataset, 'metainfo'):
        meta['dataset_meta'] = loop.dataloader.dataset.metainfo
    return meta


def _report(
    runner: Runner, plan: PruningPlan, final: dict[str, Any]
) -> dict[str, Any]:
    loop = runner.train_loop
    results, options = loop.results, loop.plan
    method = 'decay' if options.decay is not None else 'at once'
    rows = group_rows(plan, loop.groups) if plan.groups else []
    met = results.rounds[-1]['met']
    sparsity = ', '.join(f'{v:.0%} of {k}s' for k, v in met.items())
    return dict(
        title=f'{runner.experiment_name}: {sparsity} in {options.rounds} '
        f'rounds ({method})',
        config=str(runner.cfg.get('filename') or ''),
        options=json.loads(json.dumps(options.to_dict())),
        models=final['models'],
        notes=(
            'One forward of one validation image on the CPU, '
            f'{torch.get_num_threads()} threads, PyTorch {torch.__version__};'
            f' masked and pruned differ by {final["masked_difference"]:.1e}.'
        ),
        versions=dict(mmprune=__version__, torch=torch.__version__),
        groups=rows,
        kinds=kind_rows(rows),
        sections=sections(results.rounds),
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
        [
            layer['group'],
            *(_digits(_pruned(entry, place)) for entry in rounds),
        ]
        for place, layer in enumerate(rounds[0]['layers'])
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


def _pruned(entry: dict, place: int) -> float:
    layer = entry['layers'][place]
    return layer['pruned'] / layer['units']


def _digits(value: float | None) -> float | None:
    return value if value is None else round(value, 4)
