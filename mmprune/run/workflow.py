"""From a config and a checkpoint to pruned models and a report."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from ..checkpoints.reading import load_checkpoint_file
from ..cost import cost_row, cost_table, measure_latencies
from ..family import build_family, use_annotations
from ..groups import named_tensors
from ..models import loaded_model
from ..plan import PruningPlan, checkpoint_plan
from ..pruners import protect, protect_frozen, prunable_weights
from ..version import __version__
from .options import PruningOptions
from .report import unit_tables, weight_tables
from .variants import Dense, Pruned, Variant, chosen


@dataclass
class Result:
    """Pruned models with their plans, and the report about them."""

    models: dict[str, nn.Module] = field(default_factory=dict)
    plans: dict[str, PruningPlan] = field(default_factory=dict)
    report: dict = field(default_factory=dict)


def check_device(device: str) -> None:
    """Refuses a device that is not here, before anything is loaded.

    Raises:
        ValueError: If so.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        found = torch.device('meta')
        problem = str(error).splitlines()[0]
    else:
        problem = f'found {device!r}'
    if found.type not in ('cpu', 'cuda'):
        raise ValueError(f'--device must be cpu or cuda[:N]: {problem}')
    if found.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(
            f'--device {device} was asked for, but PyTorch '
            f'{torch.__version__} sees no CUDA device; use --device cpu'
        )


def load_dense(cfg: Config, path: Path, options: PruningOptions) -> tuple:
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
    return model.to(options.device).eval(), checkpoint.get('meta') or {}


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
    dense = _dense(cfg, model, options, progress)
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


def _dense(
    cfg: Config,
    model: nn.Module,
    options: PruningOptions,
    progress: Callable[[str], None],
) -> Dense:
    if options.ann_file:
        cfg = copy.deepcopy(cfg)
        use_annotations(cfg, options.ann_file)
    family = build_family(cfg)
    groups = protect(
        family.groups(model), options.protect, list(prunable_weights(model))
    )
    if not options.prune_frozen:
        groups = protect_frozen(groups, model)
    progress('counting the dense model')
    costs = cost_table(model, family.single_frame)
    return Dense(model, groups, family, costs)


def _rows(
    dense: Dense, made: dict[str, Pruned], options: PruningOptions
) -> dict[str, dict]:
    """Returns what each model costs, by name."""
    run = dense.family.single_frame
    models = dict(dense=dense.model)
    models |= {name: each.model for name, each in made.items()}
    rows = {name: cost_row(model, run) for name, model in models.items()}
    latencies = measure_latencies(
        {name: partial(run, model) for name, model in models.items()},
        options.latency_runs,
    )
    for name, row in rows.items():
        row |= made[name].row if name in made else {}
        row['latency_ms'] = latencies[name]
    return rows


def _check_target(
    rows: dict[str, dict],
    variants: Mapping[str, Variant],
    options: PruningOptions,
) -> None:
    if options.target == 'units':
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
        notes=_notes(dense, variants, options),
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
            tables = weight_tables(shapes, each.model)
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
    dense: Dense, variants: Mapping[str, Variant], options: PruningOptions
) -> str:
    chosen_by = options.weight_importance()
    weights = ''
    if 'unstructured' in variants and (chosen_by != options.importance):
        weights = (
            f' {options.importance} does not score single weights: those of '
            f'the unstructured model were chosen by {chosen_by}.'
        )
    return (
        f'One forward of one sample from {dense.family.source}; checkpoint: '
        f'weights only; latency: median of {options.latency_runs}, the '
        f'models in turns, on {options.device}, '
        f'{torch.get_num_threads()} threads, PyTorch {torch.__version__}.'
        f'{weights}'
    )
