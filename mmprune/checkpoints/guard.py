"""Refuses a checkpoint that was pruned otherwise than the model it meets."""

from collections.abc import Mapping
from typing import Any

from .comparing import differing_shapes, shapes_differ, without_prefix
from .reading import checkpoint_plan


def check_plan_matches(model: Any, checkpoint: Mapping) -> None:
    """Checks that a checkpoint was pruned as the model is.

    Compared is what decides on shapes: the kept units of the groups in
    ``checkpoint['meta']['pruning_plan']`` and in ``model.pruning_plan``.
    A plan that removes no unit fits every dense model.

    Whether weights are packed is compared as well.

    Raises:
        ValueError: If they do not agree; says how to build the model.
    """
    model = _unwrap(model)
    meta = checkpoint.get('meta')
    _check_bits(model, meta)
    plan = getattr(model, 'pruning_plan', None)
    theirs = _removed(checkpoint_plan(checkpoint))
    ours = _removed(plan.to_dict() if plan is not None else None)
    if not theirs:
        if ours:
            _check_shapes(model, checkpoint)
        return
    if theirs == ours:
        return
    differing = sorted(
        name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name)
    )
    raise ValueError(
        f'the checkpoint is pruned and the model is '
        f'{"pruned differently" if ours else "dense"}: groups '
        f'{differing[:5]} differ ({len(differing)} in all); build the model '
        "with type='mmprune.PrunedModel' and this checkpoint as its plan, or "
        'use tools/test.py, which reads the plan from the checkpoint'
    )


def _check_bits(model: Any, meta: Any) -> None:
    theirs = isinstance(meta, Mapping) and bool(meta.get('quantization'))
    if theirs == (getattr(model, 'quantization', None) is not None):
        return
    bits = ('4 bits', 'float') if theirs else ('float', '4 bits')
    raise ValueError(
        f'the weights of the checkpoint are of {bits[0]}, those of the model '
        f'of {bits[1]}; build the model with the config that '
        'tools/quantize.py wrote beside the checkpoint, or use tools/test.py, '
        'which reads it from the checkpoint'
    )


def _removed(plan: Mapping | None) -> dict[str, list[int]]:
    """Returns the kept units of each group that loses some."""
    if plan is None:
        return {}
    sizes = {g['name']: g.get('size') for g in plan.get('groups', ())}
    return {
        name: list(keep)
        for name, keep in plan.get('keep', {}).items()
        if len(keep) != sizes.get(name)
    }


def _check_shapes(model: Any, checkpoint: Mapping) -> None:
    own = model.state_dict()
    state = without_prefix(checkpoint.get('state_dict', checkpoint), own)
    shapes = differing_shapes(own, state)
    if shapes:
        raise ValueError(
            'the checkpoint carries no pruning plan and the model is pruned: '
            f'{shapes_differ(shapes)}; load the pruned checkpoint, or build '
            'the dense model'
        )


def _unwrap(model: Any) -> Any:
    from mmengine.model import BaseTTAModel, is_model_wrapper

    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
