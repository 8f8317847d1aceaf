"""Drives whole units to zero while the model trains."""

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from ..groups import named_tensors
from ..masks import scale_units, unit_norms
from ..pruners import protect
from ..registry import HOOKS
from ..sparsifying.penalty import (
    learning_rates,
    shrink_units,
    trained_producers,
)
from ..sparsifying.runner_parts import (
    averages_of,
    groups_of,
    optimizers_of,
    plain_model,
)


@HOOKS.register_module()
class GroupPenaltyHook(Hook):
    """Group lasso on the weights that write a unit, as a proximal step.

    Right after each optimizer step, whatever accumulates or scales before
    it, every unit is shrunk by learning rate x ``weight`` per weight (root
    mean square), and a unit that has no more becomes exactly zero. It may
    grow again as long as it gets gradients. ``plan_from_zeros`` of
    :mod:`mmprune.pruners` turns the zeros into a plan. What a
    :class:`MaskHook` holds at zero stays there.

    A unit that is zero is set to zero in the EMA copy too before that is
    saved or validated: an average of past weights alone never gets there.

    Args:
        weight: Strength of the penalty, in weight per unit of learning rate
            and step.
        groups: Name of the registered function that yields the model's
            groups; by default those of the config's ``pruning``.
        protect: Regular expressions; matching groups are not penalised.
    """

    # Before EMAHook (NORMAL) writes its copy into a checkpoint.
    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        weight: float,
        groups: str | None = None,
        protect: Sequence[str] = (),
    ) -> None:
        if weight <= 0:
            raise ValueError(
                f'GroupPenaltyHook: weight must be positive, found {weight:g}'
            )
        self.weight, self.groups, self.protect = weight, groups, protect

    def before_train(self, runner: Runner) -> None:
        """Finds the groups and hooks into the optimizers.

        Raises:
            ValueError: If no group can be penalised.
        """
        model = plain_model(runner)
        self._tensors = named_tensors(model)
        groups = protect(groups_of(runner, model, self.groups), self.protect)
        self._parts = {
            group.name: (trained_producers(group, self._tensors), group.size)
            for group in groups
            if not group.dense and trained_producers(group, self._tensors)
        }
        if not self._parts:
            raise ValueError(
                f'GroupPenaltyHook: none of the {len(groups)} groups has '
                'all its writing weights in training; protect less or '
                'unfreeze them'
            )
        self._handles = [
            optimizer.register_step_post_hook(self._shrink)
            for optimizer in optimizers_of(runner)
        ]

    def after_train_epoch(self, runner: Runner, *args, **kwargs) -> None:
        """Logs how many units are zero."""
        dead = sum(int(d.sum()) for d in self._dead().values())
        total = sum(size for _, size in self._parts.values())
        runner.logger.info(f'group penalty: {dead} of {total} units are zero')
        runner.message_hub.update_scalar('train/zero_units', dead)

    def before_val_epoch(self, runner: Runner) -> None:
        """Zeroes units of the EMA copy before it is validated."""
        self._zero_averages(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Zeroes units of the EMA copy before it is saved."""
        self._zero_averages(runner)

    def after_train(self, runner: Runner) -> None:
        """Lets go of the optimizers."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _shrink(self, optimizer: Optimizer, *args: object) -> None:
        rates = learning_rates(optimizer)
        for parts, size in self._parts.values():
            rate = rates.get(id(self._tensors[parts[0].tensor]))
            if rate is not None:
                amount = rate * self.weight
                shrink_units(self._tensors, parts, size, amount)

    def _dead(self) -> dict[str, Tensor]:
        return {
            name: unit_norms(self._tensors, parts, size) == 0
            for name, (parts, size) in self._parts.items()
        }

    def _zero_averages(self, runner: Runner) -> None:
        for average in averages_of(runner) if hasattr(self, '_parts') else ():
            tensors = named_tensors(average)
            for name, dead in self._dead().items():
                parts, size = self._parts[name]
                scale_units(tensors, parts, size, (~dead).float())
