"""Prunes a little more every few steps while the model trains."""

import dataclasses
from collections.abc import Callable, Mapping

from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from ..calibration import calibrate
from ..importance.kd_grad import CHANGES
from ..packing import unpack_masks
from ..plan import PruningPlan
from ..pruners import StructuredPruner, WeightPruner, prunable_weights
from ..registry import HOOKS, TASK_UTILS
from ..schedule import build_schedules, in_steps, sparsity_at
from ..sparsifying import GradientAverages, Growth, UnitChanges
from ..sparsifying.masking import MASKS
from ..sparsifying.runner_parts import (
    groups_of,
    masking_of,
    optimizers_of,
    plain_model,
)

MASKED_PLAN = 'masked_plan'
_GRADIENTS = 'gradient_averages'


@HOOKS.register_module()
class GradualPruningHook(Hook):
    """Raises the sparsity along a schedule; shapes never change.

    After step t the model has the sparsity that the schedule gives for t:
    exactly that fraction of its weights, or of its units, is masked as
    :class:`MaskHook` does it. What is pruned never comes back. Checkpoints
    carry the masks; for units also a plan (``meta['masked_plan']``) with
    which surgery gives the small model of equal outputs.

    Args:
        schedule: Config of a schedule, such as ``mmprune.CubicSchedule``;
            its ``final`` is one sparsity, or one for each granularity
            (``dict(head=0.3, neuron=0.2)``). ``begin`` and ``end`` count
            steps; numbers with a point are fractions of the training
            (``begin=0.05, end=0.5``).
        pruner: Config of a ``mmprune.WeightPruner`` or a
            ``mmprune.StructuredPruner``, without its sparsity. A criterion
            that reads gradients gets their moving average over the training,
            or what the last steps say (``mmprune.KDGrad``).
        groups: Name of the registered function that yields the model's
            groups; by default those of the config's ``pruning``.
        interval: Steps between two prunings; the end of the schedule is
            always one.
        by_epoch: Whether schedule and interval count epochs instead of
            iterations.
        window: Optimizer steps that ``mmprune.KDGrad`` looks back on.

    Attributes:
        growth: What is pruned, once a training has begun.
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
        window: int = 50,
    ) -> None:
        for name, value in (('interval', interval), ('window', window)):
            if value < 1:
                raise ValueError(
                    f'GradualPruningHook: {name} is a number of steps and at '
                    f'least 1, found {value}'
                )
        self._asked_schedule, self.window = schedule, window
        self._plan_steps(1_000_000)
        self.pruner = _pruner(pruner, self.final)
        self.groups, self.interval = groups, interval
        self.by_epoch = by_epoch
        self._gradients: GradientAverages | UnitChanges | None = None
        self._loaded: dict = {}

    def _plan_steps(self, total: int) -> None:
        """Builds the schedules for a training of so many steps."""
        self.schedules = build_schedules(
            in_steps(self._asked_schedule, total), None
        )
        self.schedule = next(iter(self.schedules.values()))
        self.final = sparsity_at(self.schedules, self.schedule.end)

    def still_pruning(self, step: int) -> bool:
        """Returns whether more will be pruned after a step."""
        return step < self.schedule.end

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remembers what a checkpoint says is pruned already."""
        self._loaded = {
            key: checkpoint[key]
            for key in ('meta', MASKS, _GRADIENTS)
            if key in checkpoint
        }

    def before_train(self, runner: Runner) -> None:
        """Finds what can be pruned, and goes on from a checkpoint's masks.

        Raises:
            ValueError: If the last sparsity of the schedule cannot be
                reached, nothing can be pruned, or there are no epochs.
        """
        self._plan_steps(self._steps(runner))
        self._check_length(runner)
        self.growth = self._growth_for(runner)
        self.growth.check(self.final)
        self._masking = masking_of(runner)
        step = runner.epoch if self.by_epoch else runner.iter
        if not self._go_on() and self._asked(step):
            self._prune(runner, step)
        self._met = self._fraction()
        self._stop_listening(step)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Prunes if it is time, and keeps what is pruned at zero."""
        self._masking.apply()
        if not self.by_epoch and self._due(runner.iter + 1):
            self._prune(runner, runner.iter + 1)
            self._stop_listening(runner.iter + 1)
        runner.message_hub.update_scalar('train/sparsity', self._met)

    def after_train_epoch(self, runner: Runner, *args, **kwargs) -> None:
        """Prunes if it is time."""
        if self.by_epoch and self._due(runner.epoch + 1):
            self._prune(runner, runner.epoch + 1)
            self._stop_listening(runner.epoch + 1)

    def after_train(self, runner: Runner) -> None:
        """Lets go of gradients and optimizers."""
        self._masking.release()
        if self._gradients is not None:
            self._gradients.release()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds masks, plan and gradient averages."""
        self._masking.save(checkpoint)
        meta, plan = checkpoint['meta'], self.growth.plan()
        if self.growth.of_units:
            # Not as ``pruning_plan``: the shapes of this model are dense.
            meta[MASKED_PLAN] = plan.to_dict()
        else:
            known = meta.get('pruning_plan') or PruningPlan((), {}).to_dict()
            sparse = {**known['sparse'], **plan.sparse}
            meta['pruning_plan'] = {**known, 'sparse': sparse}
        if self._gradients is not None:
            checkpoint[_GRADIENTS] = self._gradients.state_dict()

    def _stop_listening(self, step: int) -> None:
        if self._gradients is not None and not self.still_pruning(step):
            self._gradients.release()

    def _steps(self, runner: Runner) -> int:
        return runner.max_epochs if self.by_epoch else runner.max_iters

    def _check_length(self, runner: Runner) -> None:
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                'GradualPruningHook: by_epoch=True, but training goes by '
                'iterations; give the schedule in iterations'
            )
        steps = self._steps(runner)
        if self.schedule.end > steps:
            runner.logger.warning(
                f'gradual pruning ends at step {self.schedule.end}, training '
                f'after {steps}: it stops at sparsity '
                f'{_text(sparsity_at(self.schedules, steps))} of '
                f'{_text(self.final)}'
            )

    def _growth_for(self, runner: Runner) -> Growth:
        model = plain_model(runner)
        groups = []
        if isinstance(self.pruner, StructuredPruner):
            plan = getattr(model, 'pruning_plan', None)
            if plan is not None and plan.groups:
                raise ValueError(
                    'GradualPruningHook: the model has lost units already, '
                    'and groups are those of the dense model; start from the '
                    'dense model or prune single weights'
                )
            groups = groups_of(runner, model, self.groups)
        needs = self.pruner.importance.needs
        if needs & {*CHANGES}:
            self._gradients = UnitChanges(
                model,
                [g for g in self.pruner.targets(groups) if not g.dense],
                optimizers_of(runner),
                next(iter(needs & {*CHANGES})),
                self.window,
            )
            if self.window > self.interval > 1:
                runner.logger.info(
                    f'a pruning every {self.interval} steps looks back on '
                    f'{self.window}: further than to the last one'
                )
        elif needs:
            names = {s.tensor for g in groups for s in g.slices if not g.dense}
            self._gradients = GradientAverages(
                model,
                names or prunable_weights(model, self.pruner.protect),
                optimizers_of(runner),
            )
        if groups:
            return Growth(self.pruner, model, groups)
        names = list(prunable_weights(model, self.pruner.protect))
        if self._gradients is not None:
            # Frozen weights get no gradient and stay dense.
            params = dict(model.named_parameters(remove_duplicate=False))
            names = [name for name in names if params[name].requires_grad]
        return Growth(self.pruner, model, weights=names)

    def _go_on(self) -> bool:
        """Goes on from a checkpoint, if one was loaded that has masks."""
        loaded, self._loaded = self._loaded, {}
        if self._gradients is not None:
            self._gradients.load_state_dict(loaded.get(_GRADIENTS, {}))
        masks, _ = unpack_masks(loaded.get(MASKS, {}))
        plan = (loaded.get('meta') or {}).get(MASKED_PLAN)
        if self.growth.of_units and plan is not None:
            self.growth.take_plan(PruningPlan.from_dict(plan))
        elif not self.growth.of_units and masks:
            self.growth.take_masks(masks)
        else:
            return False
        self._hold()
        return True

    def _due(self, step: int) -> bool:
        begin, end = self.schedule.begin, self.schedule.end
        on_time = (step - begin) % self.interval == 0
        return step == end or (begin <= step < end and on_time)

    def _asked(self, step: int) -> float:
        """Returns the largest sparsity that is asked for at a step."""
        return max(schedule(step) for schedule in self.schedules.values())

    def _prune(self, runner: Runner, step: int) -> None:
        asked = sparsity_at(self.schedules, step)
        if self._asked(step):
            stats = calibrate(self.growth.model, (), set())
            if self._gradients is not None:
                self._gradients.fill(stats)
            self.growth.advance(asked, stats)
            self._hold()
        pruned, total = self.growth.count()
        unit = 'units' if self.growth.of_units else 'weights'
        self._met = self._fraction()
        runner.logger.info(
            f'gradual pruning, {"epoch" if self.by_epoch else "iteration"} '
            f'{step}: sparsity asked {_text(asked)}, met {self._met:.4f} '
            f'({pruned} of {total} {unit})'
        )

    def _hold(self) -> None:
        growth = self.growth
        self._masking.hold(growth.readers)
        plan = getattr(growth.model, 'pruning_plan', None)
        if plan is not None and not growth.of_units:
            # The model's own plan says what is sparse, as PlanHook writes it.
            sparse = {**plan.sparse, **growth.plan().sparse}
            growth.model.pruning_plan = dataclasses.replace(
                plan, sparse=sparse
            )

    def _fraction(self) -> float:
        pruned, total = self.growth.count()
        return pruned / total


def pruning_goes_on(runner: Runner) -> bool:
    """Returns whether a :class:`GradualPruningHook` has still to prune."""
    return any(
        hook.still_pruning(runner.epoch if hook.by_epoch else runner.iter)
        for hook in runner.hooks
        if isinstance(hook, GradualPruningHook)
    )


def _text(sparsity: float | Mapping[str, float]) -> str:
    if not isinstance(sparsity, Mapping):
        return f'{sparsity:.4f}'
    return ', '.join(f'{k} {_text(v)}' for k, v in sparsity.items())


def _pruner(
    pruner: dict | WeightPruner | StructuredPruner,
    final: float | Mapping[str, float],
) -> WeightPruner | StructuredPruner:
    if isinstance(pruner, dict):
        asked = {} if 'pattern' in pruner else {'sparsity': final}
        pruner = TASK_UTILS.build({**asked, **pruner})
    if not isinstance(pruner, WeightPruner | StructuredPruner):
        raise TypeError(
            'GradualPruningHook takes a WeightPruner or a StructuredPruner, '
            f'found {type(pruner).__name__}'
        )
    if pruner.sparsity != final:
        raise ValueError(
            f'the pruner asks for sparsity {pruner.sparsity} and the '
            f'schedule ends at {final}; leave it out of the pruner'
        )
    if getattr(pruner, 'target', 'units') != 'units':
        raise ValueError(
            f'GradualPruningHook counts units, not {pruner.target}; set '
            "target='units'"
        )
    unknown = pruner.importance.needs - {'grad', *CHANGES}
    if unknown:
        raise ValueError(
            f'{type(pruner.importance).__name__} needs {sorted(unknown)}, '
            'which a training does not gather; choose a criterion of weights '
            'or gradients'
        )
    return pruner
