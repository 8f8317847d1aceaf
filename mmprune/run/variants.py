"""The models that a run makes of the dense one: an open list.

A further way to make a smaller model is one more entry of :data:`VARIANTS`;
folder, report, evaluation and resume iterate over them.
"""

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ..cost_table import CostTable
from ..criteria import criterion_config
from ..errors import blame
from ..groups import PruneGroup
from ..plan import PruningPlan
from ..pruners import (
    TOLERANCE,
    LatencyPruner,
    StructuredPruner,
    WeightPruner,
    check_groups,
    default_table,
    masked_difference,
    narrow_weights,
)
from ..pruners.verify import refuse_difference
from ..surgery import apply_plan
from ..version import __version__
from .options import PruningOptions


@dataclass(frozen=True)
class Dense:
    """What variants are made of.

    Args:
        model: The dense model, in eval mode; it is left as it is.
        groups: What its family yields, protected ones with the reason.
        family: Its family, which has the data.
        costs: What its weights cost.
    """

    model: nn.Module
    groups: list[PruneGroup]
    family: Any
    costs: CostTable


@dataclass(frozen=True)
class Pruned:
    """A variant that was made.

    Args:
        model: The pruned model.
        plan: What was removed.
        groups: Those that were open or dense in the end, with the reasons.
        row: What the report says about it beside its cost.
    """

    model: nn.Module
    plan: PruningPlan
    groups: list[PruneGroup]
    row: dict[str, Any] = field(default_factory=dict)


# What kept widths are a multiple of, if nothing else is asked for.
WIDTH = 16

Make = Callable[[Dense, PruningOptions, Callable[[str], None]], Pruned]


@dataclass(frozen=True)
class Variant:
    """A way to make a smaller model.

    Args:
        make: Makes it.
        removes: ``units`` or ``weights``: what tables show of it.
        ending: Ends the name of its checkpoint, after the family's.
        plan: Name of the file with its plan, empty for none. Such a variant
            has another shape, and comes with a config that builds it.
        steps: How many steps of a progress bar it takes.
    """

    make: Make
    removes: str
    ending: str
    plan: str = ''
    steps: int = 1


def zero_weights(
    dense: Dense, options: PruningOptions, progress: Callable[[str], None]
) -> Pruned:
    """Makes the model in which single weights are zero."""
    progress('zeroing weights')
    model = copy.deepcopy(dense.model)
    protect = protected(options, dense)
    sparsity = None if options.pattern else options.sparsity
    make = getattr(dense.family, 'weight_pruner', None)
    if make is not None:
        pruner = make(sparsity, options.pattern, protect)
    else:
        pruner = WeightPruner(
            sparsity,
            importance=criterion_config(
                options.weight_importance(), options.seed
            ),
            scope=options.weight_scope(),
            pattern=options.pattern,
            protect=protect,
        )
    plan = pruner(model, **calibration_data(pruner, dense.family))
    return Pruned(model, plan, dense.groups)


def remove_units(
    dense: Dense, options: PruningOptions, progress: Callable[[str], None]
) -> Pruned:
    """Makes the model without its least important units.

    Raises:
        ValueError: If the ratio cannot be met, or the pruned model computes
            something else than the masked one.
    """
    progress('scoring and choosing units')
    groups = dense.groups
    plan = unit_plan(dense, groups, options, progress)
    progress('checking that masked equals pruned')
    difference = _difference(dense, plan)
    if not difference <= TOLERANCE:
        groups = check_groups(dense.model, groups, dense.family.forward)
        plan = unit_plan(dense, groups, options, progress)
        difference = masked_difference(dense.model, plan, dense.family.forward)
    refuse_difference(difference)
    model = copy.deepcopy(dense.model)
    apply_plan(model, plan)
    row = dict(masked_difference=difference)
    if 'latency' in plan.provenance:
        row['latency_budget'] = plan.provenance['latency']
    return Pruned(model, plan, groups, row)


VARIANTS = {
    'unstructured': Variant(zero_weights, 'weights', 'pruned.pth'),
    'structured': Variant(
        remove_units, 'units', 'structured_pruned.pth', 'plan.json', steps=2
    ),
}


def chosen(mode: str) -> dict[str, Variant]:
    """Returns the variants that ``--mode`` asks for."""
    names = ('unstructured', 'structured') if mode == 'both' else (mode,)
    return {name: VARIANTS[name] for name in names}


def calibration_data(pruner: Any, family: Any) -> dict[str, Any]:
    """Returns calibration data for a criterion that needs it."""
    needs = getattr(pruner, 'needs', None) or pruner.importance.needs
    if not needs - {'survivors'}:
        return {}

    def loss(model: nn.Module, batch: Any) -> Any:
        with blame('the loss of a calibration batch cannot be computed'):
            return family.loss(model, batch)

    with blame('the calibration data cannot be read'):
        return dict(batches=family.batches(), loss_fn=loss)


def protected(options: PruningOptions, dense: Dense) -> tuple[str, ...]:
    """Returns patterns of all weights that stay as they are.

    ``--protect``, and the exact names of what groups of such a name hold, and
    of what is too narrow for a pattern.
    """
    names = {
        s.tensor
        for g in dense.groups
        if any(re.search(pattern, g.name) for pattern in options.protect)
        for s in g.producers
    }
    names.update(narrow_weights(dense.model, options.pattern_from or 1))
    return (
        *options.protect,
        *(f'^{re.escape(name)}$' for name in sorted(names)),
    )


def unit_plan(
    dense: Dense,
    groups: list[PruneGroup],
    options: PruningOptions,
    progress: Callable[[str], None] = lambda _: None,
) -> PruningPlan:
    """Returns the plan of the structured model.

    Raises:
        ValueError: If the ratio cannot be met.
    """
    pruner = StructuredPruner(
        options.sparsity,
        importance=options.criterion(),
        target='macs' if options.target == 'latency' else options.target,
        scope=options.scope,
        min_keep=options.min_keep,
        **_rounding(options),
    )
    data = calibration_data(pruner, dense.family)
    choose: Any = pruner
    if options.target == 'latency':
        choose = LatencyPruner(
            pruner,
            dense.family.single_frame,
            options.latency_table or default_table(),
            options.latency_runs,
            progress,
        )
    try:
        plan = choose(dense.model, groups, costs=dense.costs, **data)
    except ValueError:
        if options.round_to is not None or pruner.round_to == 1:
            raise
        # Nobody asked for round widths: any others before none.
        pruner = replace(pruner, round_to=1)
        plan = pruner(dense.model, groups, costs=dense.costs, **data)
    source = None
    if data:
        # A family with a class of its own may have one source for both.
        family = dense.family
        source = getattr(family, 'calibration_source', family.source)
    plan.provenance.update(
        mmprune=__version__, protect=list(options.protect), calibration=source
    )
    return plan


def _rounding(options: PruningOptions) -> dict[str, int]:
    """Returns to what kept channels and neurons are rounded.

    Kernels work on 16 numbers at a time (AVX-512; 8 with AVX2 and on tensor
    cores): 145 channels take a fifth longer than 144. In narrow groups, or
    where each group loses the same part, such steps would miss the ratio.
    """
    if options.round_to is not None:
        return dict(round_to=options.round_to)
    if options.scope != 'global' or options.target == 'latency':
        return {}
    return dict(round_to=WIDTH, round_from=8 * WIDTH)


def _difference(dense: Dense, plan: PruningPlan) -> float:
    """Masked against pruned; infinite if they do not run, which
    `check_groups` then explains group by group."""
    try:
        return masked_difference(dense.model, plan, dense.family.forward)
    except Exception:
        # A model's own code may fail in any way on shapes it did not expect.
        return math.inf
