"""Carries an iterative pruning through the Runner's moments."""

import copy
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner

KEY = 'pruning_rounds'


class RoundHook(Hook):
    """The loop's own hook; the loop registers it, no config names it."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop

    def before_run(self, runner: Runner) -> None:
        """Keeps the fresh optimizer, before a checkpoint is loaded.

        Raises:
            ValueError: If there are several optimizers.
        """
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapperDict) or not isinstance(
            wrapper, OptimWrapper
        ):
            raise ValueError(
                'IterativePruningLoop restarts one optimizer in each round, '
                f'found a {type(wrapper).__name__}; use one optim_wrapper'
            )
        # The objects stay the same over all rounds, because hooks, the AMP
        # scaler and mmengine's step counter hold on to them.
        self._parts = [wrapper, *(runner.param_schedulers or ())]
        self._fresh = [
            copy.deepcopy(part.state_dict()) for part in self._parts
        ]
        wrapper.optimizer.register_step_pre_hook(self.loop.apply_penalty)

    def restart(self, runner: Runner) -> None:
        """Puts optimizer and schedulers back, as if nothing was trained."""
        for part, state in zip(self._parts, self._fresh, strict=True):
            part.load_state_dict(copy.deepcopy(state))
        runner.optim_wrapper.zero_grad()

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


def end_schedulers_with_the_round(
    runner: Runner, epochs: int, iters: int
) -> None:
    """Makes the round, not the run, what a scheduler's length defaults to.

    mmengine gives schedulers without an ``end`` that of the whole run.
    """
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        schedulers = [schedulers]
    for scheduler in schedulers:
        if isinstance(scheduler, dict) and 'type' in scheduler:
            by_epoch = scheduler.get('by_epoch', True)
            scheduler.setdefault('end', epochs if by_epoch else iters)
