"""From a config and a checkpoint to pruned models and a report."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from ..checkpoints.loading import load_checkpoint
from ..cost import cost_row, cost_rows, cost_table
from ..cost_table import CostTable, kept_cost
from ..errors import blame
from ..family import build_family, use_annotations
from ..groups import named_tensors
from ..models import loaded_model
from ..plan import PruningPlan, checkpoint_plan
from ..pruners import protect, protect_frozen, prunable_weights
from ..removed import group_rows, kind_rows, module_rows, unit_tables
from ..version import __version__
from .options import PruningOptions
from .report import markdown_table
from .variants import Dense, Pruned, Variant, chosen, protected, unit_plan


@dataclass
class Result:
    """Pruned models with their plans, and the report about them."""

    models: dict[str, nn.Module] = field(default_factory=dict)
    plans: dict[str, PruningPlan] = field(default_factory=dict)
    report: dict = field(default_factory=dict)


def load_dense(cfg: Config, path: Path, options: PruningOptions) -> tuple:
    """Returns the dense model in eval mode and the checkpoint's meta.

    Raises:
        ValueError: If the checkpoint is unreadable, pruned or does not fit.
    """
    checkpoint = load_checkpoint(path, options.trust_checkpoint)
    if checkpoint_plan(checkpoint) is not None:
        raise ValueError(
            f'{path} has been pruned before; give the dense checkpoint and '
            'a larger ratio'
        )
    if 'quantization' in (checkpoint.get('meta') or {}):
        raise ValueError(
            f'{path} has 4-bit weights; give the float checkpoint, and '
            'quantize what is pruned'
        )
    model = loaded_model(cfg, checkpoint, path)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(
                f'{path}: {name} holds NaN or infinite values; give a '
                'checkpoint of a training that went well'
            )
    # Not in one line: `eval` of mmdet's distilled detectors returns nothing.
    model.to(options.device)
    model.eval()
    return model, checkpoint.get('meta') or {}


def prune(
    cfg: Config,
    model: nn.Module,
    options: PruningOptions,
    progress: Callable[[str], None] = lambda _: None,
    variants: Mapping[str, Variant] | None = None,
) -> Result:
    """Returns the pruned models, their plans and the report.

    Args:
        cfg: Config of the model, with a ``pruning`` entry.
        model: The dense model, in eval mode; it is left as it is.
        options: How to prune.
        progress: Called with what begins, for a progress bar.
        variants: Name -> what to make, by default what the mode says.

    Raises:
        ValueError: If the ratio cannot be met or a pattern fits nothing.
    """
    variants = variants or chosen(options.mode)
    progress('finding groups')
    dense = find_dense(cfg, model, options, progress)
    made = {
        name: variant.make(dense, options, progress)
        for name, variant in variants.items()
    }
    progress('measuring the models')
    rows = _rows(dense, made, options)
    _check_target(rows, variants, options)
    return Result(
        models={name: each.model for name, each in made.items()},
        plans={name: each.plan for name, each in made.items()},
        report=_report(cfg, dense, made, variants, options, rows),
    )


def preview(
    cfg: Config,
    model: nn.Module,
    options: PruningOptions,
    progress: Callable[[str], None] = lambda _: None,
) -> str:
    """Returns a table of what would be cut, by kind; nothing is cut.

    Args:
        cfg: Config of the model, with a ``pruning`` entry.
        model: The dense model, in eval mode.
        options: How to prune.
        progress: Called with what begins, for a progress bar.

    Raises:
        ValueError: If the ratio cannot be met or a pattern fits nothing.
    """
    progress('finding groups')
    dense = find_dense(cfg, model, options, progress)
    lines = []
    if options.mode != 'structured':
        weights = prunable_weights(model, protected(options, dense))
        total = sum(w.numel() for w in weights.values())
        share = options.pattern or f'{options.sparsity:.1%}'
        lines.append(
            f'unstructured: {share} of {total:,} weights would be zero'
        )
    if options.mode != 'unstructured':
        progress('scoring and choosing units')
        plan = unit_plan(dense, dense.groups, options)
        lines = [_cut_table(dense, plan), *lines]
    return '\n'.join(lines)


def _cut_table(dense: Dense, plan: PruningPlan) -> str:
    """Returns what a plan cuts, a row per kind.

    What two kinds share, as the matrix between them, counts for both; the
    last row is all of them together.
    """
    rows = []
    for kind in kind_rows(group_rows(plan, dense.groups)):
        name, units = kind['granularity'], kind['units']
        own = tuple(g for g in plan.groups if g.granularity == name)
        part = PruningPlan(own, {g.name: plan.keep[g.name] for g in own})
        lost = units - kind['kept']
        removed = f'{lost} ({lost / max(units, 1):.1%})'
        counts = [name, kind['groups'], kind['dense_groups'], units, removed]
        rows.append([*counts, *_saved(dense.costs, part)])
    rows.append(['all', '', '', '', '', *_saved(dense.costs, plan)])
    heads = ('kind', 'groups', 'kept dense', 'units', 'removed')
    return markdown_table([*heads, 'params removed', 'macs removed'], rows)


def _saved(costs: CostTable, plan: PruningPlan) -> list[str]:
    saved = []
    for unit, scale, ending in (('params', 1e-6, 'M'), ('macs', 1e-9, 'G')):
        dense = costs.total(unit)
        left = kept_cost(costs, unit, plan.groups)(plan.keep)
        lost = dense - left
        saved.append(
            f'{lost * scale:.3g} {ending} ({lost / max(dense, 1):.1%})'
        )
    return saved


def find_dense(
    cfg: Config,
    model: nn.Module,
    options: PruningOptions,
    progress: Callable[[str], None] = lambda _: None,
) -> Dense:
    """Returns the dense model with its groups, family and costs."""
    if options.ann_file:
        cfg = copy.deepcopy(cfg)
        use_annotations(cfg, options.ann_file)
    family = build_family(cfg)
    with blame(f'the groups of {cfg.filename} cannot be found', cfg):
        groups = list(family.groups(model))
    groups = protect(groups, options.protect, list(prunable_weights(model)))
    if not options.prune_frozen:
        groups = protect_frozen(groups, model)
    progress('counting the dense model')
    with blame(f'{cfg.filename} does not run on its first sample', cfg):
        costs = cost_table(model, family.single_frame)
    return Dense(model, groups, family, costs)


def _rows(
    dense: Dense, made: dict[str, Pruned], options: PruningOptions
) -> dict[str, dict]:
    """Returns what each model costs, by name.

    Zeros change no shape: such a model does the operations of the dense one,
    whose multiply-adds and time are its own. A large model's forwards are
    most of what the command takes.
    """
    run, macs = dense.family.single_frame, dense.costs.counted
    models = dict(dense=dense.model)
    models |= {name: each.model for name, each in made.items()}
    same = {name for name, each in made.items() if not each.plan.groups}
    timed = {name: m for name, m in models.items() if name not in same}
    rows = cost_rows(timed, run, options.latency_runs, dict(dense=macs))
    for name in same:
        latency = dict(latency_ms=rows['dense']['latency_ms'])
        rows[name] = cost_row(models[name], run, macs) | latency
    rows = {name: rows[name] for name in models}
    for name, each in made.items():
        rows[name] |= each.row
    return rows


def _check_target(
    rows: dict[str, dict],
    variants: Mapping[str, Variant],
    options: PruningOptions,
) -> None:
    # A latency was met in turns with the dense model, when it was chosen.
    if options.target in ('units', 'latency'):
        return
    for name, variant in variants.items():
        if variant.removes != 'units':
            continue
        left = rows[name][options.target] / rows['dense'][options.target]
        if abs(1 - left - options.sparsity) > 0.01:
            raise ValueError(
                f'asked to remove {options.sparsity:.1%} of the '
                f'{options.target}, {1 - left:.1%} would be removed; nothing '
                'was written'
            )


def _report(
    cfg: Config,
    dense: Dense,
    made: dict[str, Pruned],
    variants: Mapping[str, Variant],
    options: PruningOptions,
    rows: dict[str, dict],
) -> dict:
    report = dict(
        title=_title(cfg, options),
        config=str(cfg.filename),
        options=vars(options).copy(),
        models=rows,
        notes=_notes(dense, made, variants, options),
        versions=dict(mmprune=__version__, torch=torch.__version__),
        variants={},
    )
    if 'main_metric' in cfg:
        report['main_metric'] = cfg.main_metric
    shapes = {n: tuple(t.shape) for n, t in named_tensors(dense.model).items()}
    for name, variant in variants.items():
        each: Any = made[name]
        if variant.removes == 'units':
            tables = unit_tables(
                dense.model,
                each.model,
                each.plan,
                each.groups,
                dense.family.dense_reason,
            )
        else:
            tables = dict(weights=module_rows(shapes, each.model))
        report['variants'][name] = dict(removes=variant.removes)
        # Beside the names as well: where pages that were written before
        # variants had names look for them.
        report |= {k: v for k, v in tables.items() if k not in report}
        report['variants'][name] |= tables
    return report


def _title(cfg: Config, options: PruningOptions) -> str:
    stem = Path(cfg.filename).stem
    if options.mode == 'unstructured':
        what = options.pattern or f'{options.sparsity:.0%}'
        return f'{stem}: {what} of the weights pruned'
    return f'{stem}: {options.sparsity:.0%} of {options.target} removed'


def _notes(
    dense: Dense,
    made: dict[str, Pruned],
    variants: Mapping[str, Variant],
    options: PruningOptions,
) -> str:
    chosen_by = options.weight_importance()
    weights = ''
    if 'unstructured' in variants and (chosen_by != options.importance):
        weights = (
            f' {options.importance} does not score single weights: those of '
            f'the unstructured model were chosen by {chosen_by}.'
        )
    for each in made.values():
        met = each.row.get('latency_budget')
        if met:
            weights += (
                f' Latency asked: {met["asked"]:.1%} of the dense model; '
                f'predicted from its layers {met["predicted"]:.1%}, measured '
                f'in turns {met["measured"]:.1%} ({met["measured_ms"]:.1f} of '
                f'{met["dense_ms"]:.1f} ms); layer times: {met["table"]}.'
            )
    zeros = ''
    if 'unstructured' in variants and options.latency_runs:
        zeros = (
            ' The unstructured model runs the operations of the dense one: '
            'its latency was not measured apart.'
        )
    return (
        f'One forward of one sample from {dense.family.source}; checkpoint: '
        f'weights only; latency: median of {options.latency_runs}, the '
        f'models in turns, on {options.device}, '
        f'{torch.get_num_threads()} threads, PyTorch {torch.__version__}.'
        f'{weights}{zeros}'
    )
