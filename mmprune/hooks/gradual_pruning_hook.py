"""Prunes a little more every few steps while the model trains."""

from collections.abc import Callable

from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from ..masks import unpack_masks
from ..pruners import StructuredPruner, WeightPruner
from ..registry import HOOKS, TASK_UTILS
from .gradual_choice import GradientAverages, GradualUnits, GradualWeights
from .masking import (
    MASKS,
    masking_of,
    optimizers_of,
    plain_model,
    save_masks,
)
from .training_groups import groups_of

_GRADIENTS = 'gradient_averages'


@HOOKS.register_module()
class GradualPruningHook(Hook):
    """Raises the sparsity along a schedule; shapes never change.

    After step t the model has the sparsity that the schedule gives for t:
    exactly that fraction of its weights, or of its units, is masked as
    :class:`MaskHook` does it. What went never comes back. Checkpoints carry
    the masks; for units also a plan (``meta['masked_plan']``) with which
    surgery gives the small model of equal outputs.

    Args:
        schedule: Config of a schedule, such as ``mmprune.CubicSchedule``.
        pruner: Config of a ``mmprune.WeightPruner`` or a
            ``mmprune.StructuredPruner``, without its sparsity. A criterion
            that reads gradients gets their moving average over the training.
        groups: Name of the registered function that yields the model's
            groups; by default those of the config's ``pruning``.
        interval: Steps between two prunings; the end of the schedule is
            always one.
        by_epoch: Whether schedule and interval count epochs instead of
            iterations.
    """

    # Before EMAHook (NORMAL), which averages what is left here.
    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        schedule: dict | Callable[[int], float],
        pruner: dict | WeightPruner | StructuredPruner,
        groups: str | None = None,
        interval: int = 1,
        by_epoch: bool = False,
    ) -> None:
        if interval < 1:
            raise ValueError(
                f'GradualPruningHook: interval is a number of steps and at '
                f'least 1, found {interval}'
            )
        self.schedule = _built(schedule)
        self.pruner = _pruner(pruner, self.schedule.final)
        self.groups, self.interval = groups, interval
        self.by_epoch = by_epoch
        self._gradients: GradientAverages | None = None
        self._loaded: dict = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remembers what a checkpoint says is pruned already."""
        self._loaded = {
            key: checkpoint[key]
            for key in ('meta', MASKS, _GRADIENTS)
            if key in checkpoint
        }

    def before_train(self, runner: Runner) -> None:
        """Finds what can go, and goes on from a checkpoint's masks.

        Raises:
            ValueError: If the last sparsity of the schedule cannot be
                reached, nothing can be pruned, or there are no epochs.
        """
        self._check_length(runner)
        model = plain_model(runner)
        self._choice = self._choice_for(runner, model)
        self._choice.check(self.schedule.final)
        self._masking = masking_of(runner)
        loaded, self._loaded = self._loaded, {}
        masks, _ = unpack_masks(loaded.get(MASKS, {}))
        if self._gradients is not None:
            self._gradients.load_state_dict(loaded.get(_GRADIENTS, {}))
        step = runner.epoch if self.by_epoch else runner.iter
        if self._choice.load(loaded.get('meta') or {}, masks):
            self._masking.hold(self._choice.masks, self._choice.fills)
        elif self.schedule(step):
            self._prune(runner, step)
        self._met = self._fraction()

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Prunes if it is time, and keeps what is gone at zero."""
        self._masking.apply()
        if not self.by_epoch and self._due(runner.iter + 1):
            self._prune(runner, runner.iter + 1)
        runner.message_hub.update_scalar('train/sparsity', self._met)

    def after_train_epoch(self, runner: Runner, *args, **kwargs) -> None:
        """Prunes if it is time."""
        if self.by_epoch and self._due(runner.epoch + 1):
            self._prune(runner, runner.epoch + 1)

    def after_train(self, runner: Runner) -> None:
        """Lets go of gradients and optimizers."""
        self._masking.release()
        if self._gradients is not None:
            self._gradients.release()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds masks, plan and gradient averages."""
        save_masks(checkpoint, self._masking)
        self._choice.save(checkpoint['meta'])
        if self._gradients is not None:
            checkpoint[_GRADIENTS] = self._gradients.state_dict()

    def _check_length(self, runner: Runner) -> None:
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                'GradualPruningHook: by_epoch=True, but training goes by '
                'iterations; give the schedule in iterations'
            )
        steps = runner.max_epochs if self.by_epoch else runner.max_iters
        if self.schedule.end > steps:
            runner.logger.warning(
                f'gradual pruning ends at step {self.schedule.end}, training '
                f'after {steps}: it stops at sparsity '
                f'{self.schedule(steps):.4f} of {self.schedule.final:.4f}'
            )

    def _due(self, step: int) -> bool:
        begin, end = self.schedule.begin, self.schedule.end
        on_time = (step - begin) % self.interval == 0
        return step == end or (begin <= step < end and on_time)

    def _prune(self, runner: Runner, step: int) -> None:
        asked = self.schedule(step)
        if asked:
            self._choice.choose(asked)
            self._masking.hold(self._choice.masks, self._choice.fills)
        gone, total = self._choice.count()
        self._met = self._fraction()
        runner.logger.info(
            f'gradual pruning, {"epoch" if self.by_epoch else "iteration"} '
            f'{step}: sparsity asked {asked:.4f}, met {self._met:.4f} '
            f'({gone} of {total} {self._choice.unit})'
        )

    def _fraction(self) -> float:
        gone, total = self._choice.count()
        return gone / total

    def _choice_for(
        self, runner: Runner, model: nn.Module
    ) -> GradualWeights | GradualUnits:
        if isinstance(self.pruner, WeightPruner):
            return GradualWeights(self.pruner, model)
        plan = getattr(model, 'pruning_plan', None)
        if plan is not None and plan.groups:
            raise ValueError(
                'GradualPruningHook: the model has lost units already, and '
                'groups are those of the dense model; start from the dense '
                'model or prune single weights'
            )
        groups = groups_of(runner, model, self.groups)
        if self.pruner.importance.needs:
            self._gradients = GradientAverages(
                model,
                {s.tensor for g in groups for s in g.slices if not g.dense},
                optimizers_of(runner),
            )
        return GradualUnits(self.pruner, model, groups, self._gradients)


def _built(schedule: dict | Callable[[int], float]) -> Callable:
    if isinstance(schedule, dict):
        return TASK_UTILS.build(schedule)
    return schedule


def _pruner(
    pruner: dict | WeightPruner | StructuredPruner, final: float
) -> WeightPruner | StructuredPruner:
    if isinstance(pruner, dict):
        pruner = TASK_UTILS.build({'sparsity': final, **pruner})
    if not isinstance(pruner, WeightPruner | StructuredPruner):
        raise TypeError(
            'GradualPruningHook takes a WeightPruner or a StructuredPruner, '
            f'found {type(pruner).__name__}'
        )
    if pruner.sparsity != final:
        raise ValueError(
            f'the pruner asks for sparsity {pruner.sparsity:g} and the '
            f'schedule ends at {final:g}; leave it out of the pruner'
        )
    if getattr(pruner, 'target', 'units') != 'units':
        raise ValueError(
            f'GradualPruningHook counts units, not {pruner.target}; set '
            "target='units'"
        )
    needs = getattr(pruner, 'importance', None)
    unknown = getattr(needs, 'needs', set()) - {'grad'}
    if unknown:
        raise ValueError(
            f'{type(needs).__name__} needs {sorted(unknown)}, which a '
            'training does not gather; choose a criterion of weights or '
            'gradients'
        )
    return pruner
