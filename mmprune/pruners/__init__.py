"""Pruners: from a model to a plan."""

from .structured import StructuredPruner, protect, protect_frozen
from .verify import check_groups, masked_difference
from .weights import WeightPruner, prunable_weights

__all__ = [
    'StructuredPruner',
    'WeightPruner',
    'check_groups',
    'masked_difference',
    'protect',
    'protect_frozen',
    'prunable_weights',
]
