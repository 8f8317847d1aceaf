"""The options of iterative pruning, checked when they are given."""

import difflib
from dataclasses import asdict, dataclass, fields
from typing import Any

from .arithmetic import (
    PENALTY_SCHEDULES,
    RATE_SCHEDULES,
    cumulative_sparsity,
)

CRITERIA = ('magnitude', 'l2', 'act_l1', 'act_l2', 'saliency', 'remain')
_CHOICES = dict(
    struct=('refill', 'rsst'),
    vit_prune_target=('head', 'mlp', 'both'),
    sorting_mode=('global', 'layer-wise'),
    rate_schedule=tuple(RATE_SCHEDULES),
    RST_schedule=PENALTY_SCHEDULES,
    reg_scope=('state', 'epoch'),
    penalty_mode=('auto', 'gradient', 'decoupled'),
    prune_type=('lt', 'rewind_lt', 'pt'),
    unit_counts=('schedule', 'elements'),
    normalize=(None, 'mean', 'l2-layer'),
)


@dataclass(frozen=True)
class RoundOptions:
    """What is pruned in which round, and how.

    The names are those of the public training script, so that
    ``--cfg-options train_cfg.rate=0.5`` reads as its command line did.

    Args:
        epochs: Training epochs of each round.
        pruning_times: Rounds of training, the dense round 0 included; so
            there are ``pruning_times - 1`` pruning events. 1 trains only, 2
            prunes in one shot.
        rate: Fraction of the heads (and of units that are not neurons) that
            is gone in the last round, in ``[0, 1)``. With
            ``rate_schedule='per_round'`` what each event takes of the rest.
        mlp_prune_ratio: The same for neurons; ``None`` is ``rate``.
        struct: ``refill`` removes units at once and trains the others from
            their rewound values; ``rsst`` lets them take part in one more
            round, pulled to zero by a growing penalty, and removes them then.
        vit_structured: Whether whole units go, or single weights.
        vit_prune_target: ``head``, ``mlp`` or ``both``.
        criteria: ``magnitude`` (sum of absolute weights of the rows that
            make a unit), ``l2``, ``act_l1`` and ``act_l2`` (mean absolute
            and root mean square output on a batch), ``saliency`` (sum of
            |weight x gradient|), ``remain`` (elements that an element-wise
            pruning would keep), or the config of a registered criterion.
        include_out: Whether the columns that read a unit count as well.
        normalize: ``mean`` divides scores by the mean of their layer,
            ``l2-layer`` by their norm; ``None`` favours layers with large
            weights, as the public code does.
        sorting_mode: ``global`` or ``layer-wise``.
        fillback_rate: Fraction of the units that would go which stays.
        unit_counts: ``schedule`` meets the sparsity in units; ``elements``
            keeps in each layer what its alive elements would fill.
        rate_schedule: How the sparsity grows over the events.
        allow_regrowth: Whether units that are gone may come back; they
            compete with their values at the rewind point.
        min_heads_per_layer: Heads that every layer keeps, at least 1.
        min_neurons_per_layer: Neurons that every layer keeps, at least 1.
        rewind: Whether survivors go back to the rewind point.
        prune_type: ``lt`` rewinds to the weights at the start, ``rewind_lt``
            to those after ``rewind_epoch`` epochs of round 0, ``pt`` is
            ``lt`` and insists on pretrained weights.
        rewind_epoch: See there.
        reg_granularity_prune: Final strength of RSST's penalty.
        RST_schedule: How it grows.
        exponents: Exponent of ``exp_custom_exponents``.
        reg_scope: Whether it grows over the whole ``state`` or anew in each
            ``epoch``.
        penalty_mode: ``gradient`` adds strength x weight to the gradient;
            ``decoupled`` shrinks the weight by lr x strength, because Adam
            would rescale a gradient; ``auto`` decides by the optimizer.

    Raises:
        ValueError: If an option is out of range or does not fit another.
    """

    epochs: int
    pruning_times: int
    rate: float = 0.7
    mlp_prune_ratio: float | None = None
    struct: str = 'refill'
    vit_structured: bool = True
    vit_prune_target: str = 'both'
    criteria: str | dict = 'magnitude'
    include_out: bool = False
    normalize: str | None = None
    sorting_mode: str = 'global'
    fillback_rate: float = 0.0
    unit_counts: str = 'schedule'
    rate_schedule: str = 'geometric'
    allow_regrowth: bool = False
    min_heads_per_layer: int = 1
    min_neurons_per_layer: int = 1
    rewind: bool = True
    prune_type: str = 'lt'
    rewind_epoch: int = 0
    reg_granularity_prune: float = 1.0
    RST_schedule: str = 'exp_custom_exponents'
    exponents: float = 4
    reg_scope: str = 'state'
    penalty_mode: str = 'auto'

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        if isinstance(self.criteria, str):
            _check_choice('criteria', self.criteria, CRITERIA)
        self._check_numbers()
        self._check_pairs()

    @classmethod
    def check_names(cls, options: dict) -> None:
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
        return self.pruning_times - 1

    def final(self, granularity: str) -> float:
        """Returns the fraction of a kind of unit that goes in the end."""
        ratio = self.mlp_prune_ratio
        return (
            ratio
            if granularity == 'neuron' and ratio is not None
            else (self.rate)
        )

    def sparsity(self, granularity: str, event: int) -> float:
        """Returns the asked sparsity of a kind of unit after an event."""
        return cumulative_sparsity(
            self.final(granularity), event, self.events, self.rate_schedule
        )

    def min_keep(self, granularity: str) -> int:
        """Returns how many units of a kind every layer keeps."""
        return dict(
            head=self.min_heads_per_layer, neuron=self.min_neurons_per_layer
        ).get(granularity, 1)

    def targets(self, granularity: str) -> bool:
        """Returns whether units of a kind are to be pruned."""
        kind = dict(head='head', neuron='mlp').get(granularity)
        return self.vit_prune_target == 'both' or (
            self.vit_prune_target == kind
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the options as plain data."""
        return {
            k: dict(v) if isinstance(v, dict) else v
            for k, v in asdict(self).items()
        }

    def _check_numbers(self) -> None:
        for name in (
            'epochs',
            'pruning_times',
            'min_heads_per_layer',
            'min_neurons_per_layer',
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f'{name} must be a whole number of at least 1, found '
                    f'{value!r}'
                )
        for name in (
            'rate',
            'mlp_prune_ratio',
            'fillback_rate',
            'rewind_epoch',
            'reg_granularity_prune',
            'exponents',
        ):
            value = getattr(self, name)
            if value is None and name == 'mlp_prune_ratio':
                continue
            if not isinstance(value, int | float):
                raise ValueError(f'{name} must be a number, found {value!r}')
        for name in ('rate', 'mlp_prune_ratio'):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(
                    f'{name} is the fraction that goes, in [0, 1), found '
                    f'{value!r}'
                )
        if not 0 <= self.fillback_rate <= 1:
            raise ValueError(
                'fillback_rate is a fraction in [0, 1], found '
                f'{self.fillback_rate!r}'
            )
        if self.reg_granularity_prune < 0 or self.exponents <= 0:
            raise ValueError(
                'reg_granularity_prune must not be negative and exponents be '
                f'positive, found {self.reg_granularity_prune!r} and '
                f'{self.exponents!r}'
            )

    def _check_pairs(self) -> None:
        rewinds = self.prune_type == 'rewind_lt'
        if rewinds and not 1 <= self.rewind_epoch <= self.epochs:
            raise ValueError(
                "prune_type='rewind_lt' rewinds to epoch rewind_epoch of "
                f'round 0, which has {self.epochs} epochs; found '
                f'rewind_epoch={self.rewind_epoch}'
            )
        if not rewinds and self.rewind_epoch:
            raise ValueError(
                f'rewind_epoch={self.rewind_epoch} needs '
                f"prune_type='rewind_lt', found {self.prune_type!r}"
            )
        if self.allow_regrowth and self.criteria not in (
            'magnitude',
            'l2',
        ):
            raise ValueError(
                'allow_regrowth compares units that are gone by their '
                "weights; use criteria='magnitude' or 'l2', found "
                f'{self.criteria!r}'
            )
        if self.allow_regrowth and not self.rewind:
            raise ValueError(
                'allow_regrowth gives units that come back their values at '
                'the rewind point, and rewind=False does not go there; leave '
                'one of them out'
            )
        if not self.vit_structured and (
            self.criteria != 'magnitude'
            or self.vit_prune_target != 'both'
            or self.mlp_prune_ratio not in (None, self.rate)
            or self.fillback_rate
            or self.unit_counts != 'schedule'
            or self.allow_regrowth
        ):
            raise ValueError(
                'vit_structured=False prunes single weights of all matrices '
                'by magnitude; criteria, vit_prune_target, mlp_prune_ratio, '
                'fillback_rate, unit_counts and allow_regrowth belong to '
                'structured pruning'
            )


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(
            f'{name} must be one of {", ".join(map(str, choices))}, found '
            f'{value!r}'
        )
