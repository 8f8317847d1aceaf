"""Pruners: from a model to a plan."""

from .protection import protect, protect_frozen
from .structured import StructuredPruner
from .verify import TOLERANCE, check_groups, masked_difference
from .weights import WeightPruner, prunable_weights
from .zeros import plan_from_zeros

__all__ = [
    'TOLERANCE',
    'StructuredPruner',
    'WeightPruner',
    'check_groups',
    'masked_difference',
    'plan_from_zeros',
    'protect',
    'protect_frozen',
    'prunable_weights',
]
