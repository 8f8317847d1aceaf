"""Pruners: from a model to a plan."""

from .admm import ADMM
from .latency import LatencyPruner, default_table, share_of_time
from .layerwise import LayerwisePruner
from .outliers import OutlierRatios
from .protection import protect, protect_frozen
from .sparsegpt import SparseGPT
from .structured import StructuredPruner
from .verify import TOLERANCE, check_groups, masked_difference
from .weights import WeightPruner, narrow_weights, prunable_weights
from .zeros import plan_from_zeros

__all__ = [
    'ADMM',
    'TOLERANCE',
    'LatencyPruner',
    'LayerwisePruner',
    'OutlierRatios',
    'SparseGPT',
    'StructuredPruner',
    'WeightPruner',
    'check_groups',
    'default_table',
    'masked_difference',
    'narrow_weights',
    'plan_from_zeros',
    'protect',
    'protect_frozen',
    'prunable_weights',
    'share_of_time',
]
