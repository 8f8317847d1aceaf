"""Carries the state of an iterative pruning through the Runner's moments."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

KEY = 'pruning_rounds'


class RoundHook(Hook):
    """The loop's own hook; the loop registers it, no config names it.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: Any) -> None:
        self.loop = loop

    def before_run(self, runner: Runner) -> None:
        """Keeps the fresh optimizer, before a checkpoint is loaded."""
        self.loop.fresh_start.capture(runner)
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_step_pre_hook(self.loop.apply_penalty)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds which round it is, and what is pruned."""
        checkpoint[KEY] = self.loop.state_dict()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Goes on in the round of the checkpoint when a run is resumed.

        Raises:
            ValueError: If the checkpoint knows of no rounds.
        """
        if not runner._resume:
            return
        if KEY not in checkpoint:
            raise ValueError(
                'cannot resume: the checkpoint is of a run without rounds; '
                'give it as load_from to start from its weights'
            )
        self.loop.load_state_dict(checkpoint[KEY])
