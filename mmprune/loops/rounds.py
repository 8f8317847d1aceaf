"""What happens in which round, checked when it is given."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from ..checks import check_whole
from ..registry import TASK_UTILS
from ..schedule import Schedule, build_schedules, sparsity_at
from ..sparsifying.penalty import DecayPenalty


@dataclass(frozen=True)
class Rounds:
    """The plan of an iterative pruning.

    Args:
        rounds: Rounds of training, the dense round 0 included; so there are
            ``rounds - 1`` pruning events. 1 trains only, 2 prunes in one
            shot.
        epochs: Training epochs of each round.
        pruner: Config of a ``mmprune.StructuredPruner`` or a
            ``mmprune.WeightPruner``; its ``sparsity`` is that of the last
            round.
        schedule: Config of a schedule over the events, from which
            ``begin``, ``end`` and ``final`` are left out.
        decay: ``None`` removes what is chosen at once, and the others train
            from their rewound values. A :class:`DecayPenalty`'s config lets
            it take part in one more round, pulled to zero by a growing
            penalty, and removes it then.
        regrow: Whether pruned units may come back; they compete with their
            values at the rewind point.
        rewind: Whether survivors go back to the rewind point.
        rewind_epoch: The rewind point is the model after so many epochs of
            round 0.
        require_pretrained: Whether a run without pretrained weights is an
            error.

    Raises:
        ValueError: If an option is out of range or does not fit another.
    """

    rounds: int
    epochs: int
    pruner: Mapping[str, Any]
    schedule: Mapping[str, Any] = field(
        default_factory=lambda: dict(type='mmprune.ExponentialSchedule')
    )
    decay: Mapping[str, Any] | None = None
    regrow: bool = False
    rewind: bool = True
    rewind_epoch: int = 0
    require_pretrained: bool = False

    def __post_init__(self) -> None:
        for name in ('rounds', 'epochs'):
            check_whole(name, getattr(self, name), 1)
        if not 0 <= self.rewind_epoch <= self.epochs:
            raise ValueError(
                'rewind_epoch is an epoch of round 0, which has '
                f'{self.epochs}; found {self.rewind_epoch}'
            )
        self._check_regrow()
        for checked in (self.built_pruner, self.penalty, self.schedules):
            del checked  # built once, for its errors

    @classmethod
    def check_names(cls, options: Mapping[str, Any]) -> None:
        """Raises ``ValueError`` for names that are no options."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise ValueError(
                    f'iterative pruning has no option {name!r}'
                    + (f'; did you mean {near[0]!r}?' if near else '')
                )

    @property
    def events(self) -> int:
        """Number of pruning events."""
        return self.rounds - 1

    @cached_property
    def built_pruner(self) -> Any:
        """The pruner of the last round."""
        pruner = TASK_UTILS.build(dict(self.pruner))
        if getattr(pruner, 'target', 'units') != 'units':
            raise ValueError(
                f'iterative pruning counts units, not {pruner.target}; leave '
                'target out of the pruner'
            )
        return pruner

    @cached_property
    def penalty(self) -> DecayPenalty | None:
        """The penalty on what decays."""
        return None if self.decay is None else DecayPenalty(**self.decay)

    @cached_property
    def schedules(self) -> dict[str, Schedule]:
        """Granularity -> schedule over the events."""
        if 'type' not in self.schedule or 'final' in self.schedule:
            raise ValueError(
                'schedule takes a type, and its final is the sparsity of the '
                f'pruner; found {dict(self.schedule)}'
            )
        if not self.events:
            return {}
        span = dict(begin=0, end=self.events)
        if 'OneShot' in str(self.schedule['type']):
            span = dict(begin=1)
        return build_schedules(
            {**span, **self.schedule}, self.built_pruner.sparsity
        )

    def sparsity(self, event: int) -> float | dict[str, float]:
        """Returns the sparsity after an event, 0 after none."""
        if not event:
            sparsity = self.built_pruner.sparsity
            if isinstance(sparsity, Mapping):
                return dict.fromkeys(sparsity, 0.0)
            return 0.0
        return sparsity_at(self.schedules, event)

    def to_dict(self) -> dict[str, Any]:
        """Returns the options as plain data."""
        return _plain(asdict(self))

    def check_same(self, other: 'Rounds') -> None:
        """Raises ``ValueError`` if a run had other options, naming them."""
        mine, theirs = _flat(self._settings()), _flat(other._settings())
        differing = [
            f'{name}={theirs.get(name)!r} then, {mine.get(name)!r} now'
            for name in {**mine, **theirs}
            if mine.get(name) != theirs.get(name)
        ]
        if differing:
            raise ValueError(
                'the checkpoint belongs to a run with other options: '
                f'{"; ".join(differing[:4])}; resume with the same ones, or '
                'start a new run in another folder'
            )

    def _settings(self) -> dict[str, Any]:
        """All options with their defaults, however they were written."""
        pruner = {
            f.name: getattr(self.built_pruner, f.name)
            for f in fields(self.built_pruner)
        }
        pruner['type'] = type(self.built_pruner).__name__
        pruner['importance'] = repr(self.built_pruner.importance)
        least = pruner.get('min_keep')
        if isinstance(least, Mapping) and set(least.values()) == {1}:
            pruner['min_keep'] = 1
        decay = None if self.penalty is None else asdict(self.penalty)
        return _plain({**asdict(self), 'pruner': pruner, 'decay': decay})

    def _check_regrow(self) -> None:
        if not self.regrow:
            return
        pruner = self.built_pruner
        if pruner.importance.needs or not hasattr(pruner, 'targets'):
            raise ValueError(
                'regrow compares pruned units by their weights at the rewind '
                'point; use a StructuredPruner with a criterion that reads '
                f'weights alone, found {type(pruner).__name__} with '
                f'{type(pruner.importance).__name__}'
            )
        if not self.rewind:
            raise ValueError(
                'regrow gives units that come back their values at the '
                'rewind point, and rewind=False does not go there; leave one '
                'of them out'
            )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _flat(options: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Nested options under dotted names."""
    flat = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f'{prefix}{name}.')
        else:
            flat[prefix + name] = value
    return flat
