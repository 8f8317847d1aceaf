"""Keeps the plan inside the checkpoints of a pruned model."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..registry import HOOKS


@HOOKS.register_module()
class PlanHook(Hook):
    """Writes the model's plan into ``checkpoint['meta']['pruning_plan']``.

    With it any later checkpoint of a run says itself what was cut, and
    builds its model: ``plan='work_dirs/x/epoch_12.pth'``. A model without a
    plan is left alone.
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the plan as plain containers."""
        model = runner.model
        if is_model_wrapper(model):
            model = model.module
        plan = getattr(model, 'pruning_plan', None)
        if plan is not None:
            checkpoint['meta']['pruning_plan'] = plan.to_dict()
