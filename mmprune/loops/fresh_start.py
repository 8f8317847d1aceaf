"""Every round begins with an optimizer as at the start of the run."""

import copy
from collections.abc import Sequence

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner


class FreshStart:
    """The states of optimizer and schedulers before the first step.

    The objects stay the same over all rounds, because hooks, the AMP scaler
    and mmengine's step counter hold on to them; only their states go back.
    """

    def capture(self, runner: Runner) -> None:
        """Keeps the present states.

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
        self._optimizer = copy.deepcopy(wrapper.state_dict())
        self._schedulers = [
            copy.deepcopy(s.state_dict())
            for s in runner.param_schedulers or ()
        ]

    def restore(self, runner: Runner) -> None:
        """Puts the states back, as if nothing had been trained."""
        runner.optim_wrapper.load_state_dict(copy.deepcopy(self._optimizer))
        runner.optim_wrapper.zero_grad()
        pairs = zip(
            runner.param_schedulers or (), self._schedulers, strict=True
        )
        for scheduler, state in pairs:
            scheduler.load_state_dict(copy.deepcopy(state))


def end_schedulers_with_the_round(
    runner: Runner, epochs: int, iters: int
) -> None:
    """Makes the round, not the run, what a scheduler's length defaults to.

    mmengine gives schedulers without an ``end`` that of the whole run.

    Args:
        runner: Its ``param_schedulers`` are still configs.
        epochs: Epochs of a round.
        iters: Iterations of a round.
    """
    schedulers = runner.param_schedulers
    if isinstance(schedulers, dict):
        schedulers = [schedulers]
    for scheduler in schedulers if isinstance(schedulers, Sequence) else ():
        if isinstance(scheduler, dict) and 'type' in scheduler:
            by_epoch = scheduler.get('by_epoch', True)
            scheduler.setdefault('end', epochs if by_epoch else iters)
