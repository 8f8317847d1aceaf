"""Iterative pruning without a Runner: what goes when, and what is rewound."""

from .arithmetic import (
    RATE_SCHEDULES,
    cumulative_sparsity,
    fill_back,
    num_gone,
    penalty_strength,
)
from .options import RoundOptions
from .rewind import RewindPoint
from .units import UnitRounds
from .weights import WeightRounds

__all__ = [
    'RATE_SCHEDULES',
    'RewindPoint',
    'RoundOptions',
    'UnitRounds',
    'WeightRounds',
    'cumulative_sparsity',
    'fill_back',
    'num_gone',
    'penalty_strength',
]
