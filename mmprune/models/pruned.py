"""Builds a pruned model from the config of the dense one."""

from pathlib import Path

from torch import nn

from ..checkpoints.unfilled import noting_nothing
from ..plan import PruningPlan
from ..registry import MODELS
from ..surgery import apply_plan


@MODELS.register_module(name='PrunedModel')
def build_pruned_model(
    model: dict, plan: str | Path | dict, **kwargs
) -> nn.Module:
    """Returns the model of a config after surgery; there is no wrapper.

    ``type(model)`` and the keys of the state dict are those of the dense
    model. Use it as ``model=dict(type='mmprune.PrunedModel', model=...,
    plan=...)`` in a config.

    Args:
        model: Config of the dense model.
        plan: Path of a ``plan.json`` or of a checkpoint that carries its
            plan, or the plan as a dict.
        kwargs: Further arguments of the model, as ``data_preprocessor``.

    Raises:
        ValueError: If there is no plan or it belongs to another model.
    """
    if isinstance(plan, dict):
        plan = PruningPlan.from_dict(plan)
    else:
        plan = PruningPlan.load(plan)
    built = MODELS.build({**model, **kwargs})
    with noting_nothing():
        apply_plan(built, plan)
    # mmengine would replay a `Pretrained` init_cfg onto the smaller layers.
    built._is_init = True
    return built
