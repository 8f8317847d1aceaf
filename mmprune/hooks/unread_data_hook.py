"""A training by iterations that goes on from the count of another."""

from itertools import chain, repeat

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..registry import HOOKS


@HOOKS.register_module()
class UnreadDataHook(Hook):
    """Spares a training the data of the one before it.

    mmengine's ``IterBasedTrainLoop`` reads, and drops, a batch for every
    iteration that the checkpoint has behind it, so that a resumed run sees
    the data that comes next. Those of an earlier training were read in
    another order, and reading them again takes hours for nothing.

    Args:
        iterations: Count of the earlier training.
    """

    # After SeedHook, which replaces the iterator.
    priority = 'HIGH'

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def before_train(self, runner: Runner) -> None:
        """Puts empty items before the data."""
        loop = runner.train_loop
        loop.dataloader_iterator = chain(
            repeat(None, self.iterations), loop.dataloader_iterator
        )
