"""From a config and a checkpoint to pruned checkpoints and a report."""

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from mmengine.config import Config
from torch import nn

from ..allocation import check_sparsity
from ..checkpoints.reading import load_checkpoint_file
from ..cost import (
    CostTable,
    cost_table,
    count_macs,
    count_nonzero,
    count_params,
    measure_latencies,
)
from ..groups import PruneGroup, named_tensors
from ..models import build_model, load_weights
from ..plan import PruningPlan, checkpoint_plan
from ..pruners import (
    StructuredPruner,
    WeightPruner,
    check_groups,
    masked_difference,
    protect,
    protect_frozen,
    prunable_weights,
)
from ..registry import TASK_UTILS
from ..surgery import apply_plan
from ..version import __version__
from .report import (
    group_rows,
    kind_rows,
    module_rows,
    tensor_rows,
    uncovered_rows,
    weights_mb,
)

# Largest difference between masked and pruned that is handed over.
TOLERANCE = 1e-3

CRITERIA = {
    'l1': dict(type='mmprune.Magnitude', p=1),
    'l2': dict(type='mmprune.Magnitude', p=2),
    'bn_scale': dict(type='mmprune.BNScale'),
    'taylor': dict(type='mmprune.Taylor'),
    'random': dict(type='mmprune.Random'),
}


class Family(Protocol):
    """What a family of models tells, built from the config's ``pruning``."""

    source: str

    def groups(self, model: nn.Module) -> Any:
        """Yields the groups."""

    def dense_reason(self, tensor: str) -> str:
        """Returns why no group covers a tensor."""

    def batches(self) -> list[Any]:
        """Returns the calibration batches."""

    def forward(self, model: nn.Module) -> Any:
        """Returns all outputs for an example, to compare models."""

    def single_frame(self, model: nn.Module) -> Any:
        """Runs the model once, to count its cost."""

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Returns the calibration loss."""


@dataclass(frozen=True)
class Options:
    """How to prune; the command line's flags.

    Args:
        sparsity: Fraction to remove.
        importance: A key of :data:`CRITERIA`.
        scope: ``global`` or ``layer``.
        target: ``units``, ``params`` or ``macs``.
        round_to: Kept channels and neurons are a multiple of this.
        min_keep: Units that every group keeps.
        protect: Regular expressions of what stays dense.
        prune_frozen: Whether layers that training freezes lose units too.
        mode: ``both``, ``structured`` or ``unstructured``.
        seed: Of the random criterion.
        device: Where the model runs.
        latency_runs: Timed forwards per model, in turns; 0 for none.
        ann_file: Info file of the examples.
        trust_checkpoint: Whether to unpickle what the safe loader refuses.
    """

    sparsity: float = 0.3
    importance: str = 'l1'
    scope: str = 'global'
    target: str = 'units'
    round_to: int = 1
    min_keep: int = 1
    protect: tuple[str, ...] = ()
    prune_frozen: bool = False
    mode: str = 'both'
    seed: int = 0
    device: str = 'cpu'
    latency_runs: int = 5
    ann_file: str | None = None
    trust_checkpoint: bool = False

    def criterion(self) -> dict:
        """Returns the config of the criterion."""
        config = dict(CRITERIA[self.importance])
        if self.importance == 'random':
            config['seed'] = self.seed
        return config


@dataclass
class Result:
    """Pruned models with their plans, and the report about them."""

    models: dict[str, nn.Module] = field(default_factory=dict)
    plans: dict[str, PruningPlan] = field(default_factory=dict)
    report: dict = field(default_factory=dict)


def check_options(options: Options) -> None:
    """Refuses what cannot work before anything is loaded.

    Raises:
        ValueError: If an option is out of range or the device is absent.
    """
    check_sparsity(options.sparsity)
    if options.round_to < 1 or options.min_keep < 1:
        raise ValueError(
            '--round-to and --min-keep are numbers of units and at least 1, '
            f'found {options.round_to} and {options.min_keep}'
        )
    if options.latency_runs < 0:
        raise ValueError(
            f'--latency-runs must not be negative, found '
            f'{options.latency_runs}; 0 measures nothing'
        )
    try:
        device = torch.device(options.device)
    except RuntimeError as error:
        device = torch.device('meta')
        problem = str(error).splitlines()[0]
    else:
        problem = f'found {options.device!r}'
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f'--device must be cpu or cuda[:N]: {problem}')
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(
            f'--device {options.device} was asked for, but PyTorch '
            f'{torch.__version__} sees no CUDA device; use --device cpu'
        )


def family_of(cfg: Config, ann_file: str | None) -> Family:
    """Builds what the config's ``pruning`` names.

    Raises:
        ValueError: If the config does not say how to prune its model.
    """
    if 'pruning' not in cfg:
        raise ValueError(
            f'{cfg.filename} has no `pruning` entry that says which groups '
            'its model has; start from one of projects/configs, or see '
            'docs/add_a_family.md'
        )
    # A copy, because what is trained afterwards keeps its own data.
    cfg = copy.deepcopy(cfg)
    family = TASK_UTILS.build({**cfg.pruning, 'cfg': cfg})
    if ann_file is not None:
        family.use_annotations(cfg, ann_file)
    return family


def load_dense(cfg: Config, path: Path, options: Options) -> tuple:
    """Returns the dense model in eval mode and the checkpoint's meta.

    Raises:
        ValueError: If the checkpoint is unreadable, pruned or does not fit.
    """
    checkpoint = load_checkpoint_file(path, trust=options.trust_checkpoint)
    if checkpoint_plan(checkpoint) is not None:
        raise ValueError(
            f'{path} has been pruned before; give the dense checkpoint and '
            'a larger ratio'
        )
    model = build_model(cfg)
    load_weights(model, checkpoint, path)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(
                f'{path}: {name} holds NaN or infinite values; give a '
                'checkpoint of a training that went well'
            )
    return model.to(options.device).eval(), checkpoint.get('meta') or {}


def prune(
    cfg: Config,
    model: nn.Module,
    options: Options,
    stage: Callable[[str], None] = lambda _: None,
) -> Result:
    """Returns the pruned models, their plans and the report.

    Args:
        cfg: Config of the model, with a ``pruning`` entry.
        model: The dense model, in eval mode; it is left as it is.
        options: How to prune.
        stage: Called with what begins, for a progress bar.

    Raises:
        ValueError: If the ratio cannot be met or a pattern fits nothing.
    """
    stage('preparing an example')
    family = family_of(cfg, options.ann_file)
    stage('finding groups')
    groups = protect(
        family.groups(model), options.protect, list(prunable_weights(model))
    )
    if not options.prune_frozen:
        groups = protect_frozen(groups, model)
    stage('counting the dense model')
    costs = cost_table(model, family.single_frame)
    result = Result()
    if options.mode in ('both', 'unstructured'):
        stage('zeroing weights')
        result.models['unstructured'] = copy.deepcopy(model)
        result.plans['unstructured'] = WeightPruner(
            options.sparsity,
            protect=_protected(options.protect, groups),
        )(result.models['unstructured'])
    difference = None
    if options.mode in ('both', 'structured'):
        stage('scoring and choosing units')
        plan = _plan(model, groups, family, costs, options)
        stage('checking that masked equals pruned')
        difference = _difference(model, plan, family)
        if not difference <= TOLERANCE:
            groups = check_groups(model, groups, family.forward)
            plan = _plan(model, groups, family, costs, options)
            difference = _check(model, plan, family)
        result.models['structured'] = copy.deepcopy(model)
        apply_plan(result.models['structured'], plan)
        result.plans['structured'] = plan
    stage('measuring the models')
    models = dict(dense=model, **result.models)
    rows = {name: _row(each, family) for name, each in models.items()}
    if difference is not None:
        rows['structured']['masked_difference'] = difference
        _check_target(rows, options)
    latencies = measure_latencies(
        {n: partial(family.single_frame, m) for n, m in models.items()},
        options.latency_runs,
    )
    for name, milliseconds in latencies.items():
        rows[name]['latency_ms'] = milliseconds
    result.report = _report(cfg, model, groups, family, options, result, rows)
    return result


def _protected(
    patterns: tuple[str, ...], groups: list[PruneGroup]
) -> tuple[str, ...]:
    """The patterns, and the exact names of what the protected groups hold."""
    names = {
        s.tensor
        for g in groups
        if g.dense.startswith('protected by')
        for s in g.producers
    }
    return (*patterns, *(f'^{re.escape(name)}$' for name in sorted(names)))


def _plan(
    model: nn.Module,
    groups: list[PruneGroup],
    family: Family,
    costs: CostTable,
    options: Options,
) -> PruningPlan:
    pruner = StructuredPruner(
        options.sparsity,
        importance=options.criterion(),
        target=options.target,
        scope=options.scope,
        round_to=options.round_to,
        min_keep=options.min_keep,
    )
    needs_data = bool(pruner.importance.needs)
    plan = pruner(
        model,
        groups,
        batches=family.batches() if needs_data else (),
        loss_fn=family.loss,
        costs=costs,
    )
    plan.provenance.update(
        mmprune=__version__,
        protect=list(options.protect),
        calibration=getattr(family, 'calibration_source', family.source)
        if needs_data
        else None,
    )
    return plan


def _difference(model: nn.Module, plan: PruningPlan, family: Family) -> float:
    """Masked against pruned; infinite if they do not run, which
    `check_groups` then explains group by group."""
    try:
        return masked_difference(model, plan, family.forward)
    except (RuntimeError, ValueError, IndexError):
        return math.inf


def _check(model: nn.Module, plan: PruningPlan, family: Family) -> float:
    difference = masked_difference(model, plan, family.forward)
    if not difference <= TOLERANCE:
        raise ValueError(
            'the pruned model would compute something else than the masked '
            f'one (outputs differ by {difference:.1e} of their scale); '
            'nothing was written, please report this with the config'
        )
    return difference


def _row(model: nn.Module, family: Family) -> dict:
    return dict(
        params=count_params(model),
        nonzero=count_nonzero(model),
        macs=count_macs(model, family.single_frame)[''],
        checkpoint_mb=weights_mb(model),
    )


def _check_target(rows: dict[str, dict], options: Options) -> None:
    if options.target == 'units':
        return
    left = rows['structured'][options.target] / rows['dense'][options.target]
    if abs(1 - left - options.sparsity) > 0.01:
        raise ValueError(
            f'asked to remove {options.sparsity:.1%} of the '
            f'{options.target}, {1 - left:.1%} would go; nothing was written'
        )


def _report(
    cfg: Config,
    model: nn.Module,
    groups: list[PruneGroup],
    family: Family,
    options: Options,
    result: Result,
    rows: dict[str, dict],
) -> dict:
    report = dict(
        title=f'{Path(cfg.filename).stem}: {options.sparsity:.0%} of '
        f'{options.target} removed',
        config=str(cfg.filename),
        options={**vars(options)},
        models=rows,
        notes=(
            f'One forward of one sample from {family.source}; checkpoint: '
            f'weights only; latency: median of {options.latency_runs}, the '
            f'models in turns, on {options.device}, '
            f'{torch.get_num_threads()} threads, PyTorch {torch.__version__}.'
        ),
        versions=dict(mmprune=__version__, torch=torch.__version__),
    )
    if 'main_metric' in cfg:
        report['main_metric'] = cfg.main_metric
    shapes = {n: tuple(t.shape) for n, t in named_tensors(model).items()}
    if 'structured' in result.plans:
        report['groups'] = group_rows(result.plans['structured'], groups)
        report['kinds'] = kind_rows(report['groups'])
        report['uncovered'] = uncovered_rows(
            model, groups, family.dense_reason
        )
        report['modules'] = module_rows(shapes, result.models['structured'])
        report['tensors'] = tensor_rows(shapes, result.models['structured'])
    if 'unstructured' in result.models:
        report['weights'] = module_rows(shapes, result.models['unstructured'])
    return report
