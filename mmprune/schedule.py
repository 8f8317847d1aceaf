"""Sparsity as a function of the step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .registry import TASK_UTILS

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class _Ramp:
    """From ``initial`` at ``begin`` to ``final`` at ``end``, then constant.

    Steps are optimizer steps, iterations or epochs, as the caller counts.
    """

    begin: int
    end: int
    final: float
    initial: float = 0.0

    def __post_init__(self) -> None:
        _check(self.begin, self.initial, self.final)
        if self.end <= self.begin:
            raise ValueError(
                f'a schedule must end after it begins, found begin='
                f'{self.begin} and end={self.end}; OneShot has one step only'
            )

    def progress(self, step: int) -> float:
        """Returns how much of the ramp is behind, 0 to 1."""
        done = (step - self.begin) / (self.end - self.begin)
        return min(max(done, 0.0), 1.0)

    def __call__(self, step: int) -> float:
        """Returns the sparsity after ``step`` steps."""
        # The formulas would round at the end.
        return self.final if step >= self.end else self._between(step)


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class OneShot:
    """All at once: ``initial`` before step ``begin``, ``final`` from then on.

    Args:
        begin: The step at which everything is pruned.
        final: Sparsity from then on, in ``[0, 1)``.
        initial: Sparsity before.
    """

    begin: int
    final: float
    initial: float = 0.0

    def __post_init__(self) -> None:
        _check(self.begin, self.initial, self.final)

    @property
    def end(self) -> int:
        """The last step at which something changes."""
        return self.begin

    def __call__(self, step: int) -> float:
        """Returns the sparsity after ``step`` steps."""
        return self.final if step >= self.begin else self.initial


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class LinearSchedule(_Ramp):
    r"""The same number of weights at every step.

    :math:`s = s_i + (s_f - s_i) p` with the progress :math:`p` from 0 at
    ``begin`` to 1 at ``end``.
    """

    def _between(self, step: int) -> float:
        done = self.progress(step)
        return self.initial * (1 - done) + self.final * done


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class CubicSchedule(_Ramp):
    r"""Fast while much is redundant, slow towards the end.

    :math:`s = s_f + (s_i - s_f)(1 - p)^3` with the progress :math:`p` from 0
    at ``begin`` to 1 at ``end``. Zhu & Gupta, "To prune, or not to prune",
    2017; they also fix the pruning frequency, here the hook's ``interval``.
    """

    def _between(self, step: int) -> float:
        left = (1 - self.progress(step)) ** 3
        return self.final + (self.initial - self.final) * left


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class ExponentialSchedule(_Ramp):
    r"""The same fraction of what is left at every step.

    :math:`1 - s = (1 - s_i) \left(\frac{1 - s_f}{1 - s_i}\right)^p` with the
    progress :math:`p` from 0 at ``begin`` to 1 at ``end``.
    """

    def _between(self, step: int) -> float:
        dense, kept = 1 - self.initial, 1 - self.final
        return 1 - dense * (kept / dense) ** self.progress(step)


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class CompoundSchedule(_Ramp):
    r"""Every step removes the same given fraction of what is left.

    :math:`1 - s = (1 - s_i) (1 - s_f)^{k}` after k of the steps from
    ``begin`` to ``end``: here ``final`` is what one step removes. Frankle &
    Carbin, "The Lottery Ticket Hypothesis", ICLR 2019.
    """

    def __call__(self, step: int) -> float:
        """Returns the sparsity after ``step`` steps."""
        count = min(max(step, self.begin), self.end) - self.begin
        return 1 - (1 - self.initial) * (1 - self.final) ** count


def build_schedules(
    config: Mapping | Schedule, final: float | Mapping[str, float] | None
) -> dict[str, Schedule]:
    """Returns a schedule for each granularity that has a sparsity.

    Args:
        config: Config of a schedule, or one that is built.
        final: Its sparsity in the end, or one for each granularity; left
            out if the config says it.

    Returns:
        Granularity -> schedule; under ``''`` that of all.
    """
    if not isinstance(config, Mapping):
        return {'': config}
    final = config.get('final') if final is None else final
    finals = final if isinstance(final, Mapping) else {'': final}
    return {
        kind: TASK_UTILS.build({**config, 'final': value})
        for kind, value in finals.items()
    }


def in_steps(config: Mapping | Schedule, total: int) -> Mapping | Schedule:
    """Returns the config of a schedule with fractions as steps.

    Args:
        config: Its ``begin`` and ``end`` are steps, or floats between 0 and 1
            for fractions of a training.
        total: Steps of the training.

    Raises:
        ValueError: If a fraction is none, or the training too short for two.
    """
    if not isinstance(config, Mapping):
        return config
    found = dict(config)
    for key in ('begin', 'end'):
        value = found.get(key)
        if isinstance(value, float):
            if not 0 <= value <= 1:
                raise ValueError(
                    f'{key} of a schedule is a step or a fraction between 0.0 '
                    f'and 1.0 of the training, found {value:g}'
                )
            found[key] = int(value * total + 0.5)
    return found


def sparsity_at(
    schedules: Mapping[str, Schedule], step: int
) -> float | dict[str, float]:
    """Returns the sparsity after a step, one for each granularity if that is
    how they were built."""
    found = {kind: schedule(step) for kind, schedule in schedules.items()}
    return found.get('', found)


def _check(begin: int, initial: float, final: float) -> None:
    if begin < 0:
        raise ValueError(
            f'a schedule begins at step 0 or later, found {begin}'
        )
    if not 0 <= initial <= final < 1:
        raise ValueError(
            'a schedule needs 0 <= initial <= final < 1, found initial='
            f'{initial:g} and final={final:g}'
        )
