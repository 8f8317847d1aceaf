"""Models that a config can name, and loading them."""

from ..checkpoints.loading import (
    as_pruned,
    build_model,
    fitted,
    load_model,
    load_weights,
)
from .distilled import build_distilled_model
from .pruned import build_pruned_model

__all__ = [
    'as_pruned',
    'build_distilled_model',
    'build_model',
    'build_pruned_model',
    'fitted',
    'load_model',
    'load_weights',
]
