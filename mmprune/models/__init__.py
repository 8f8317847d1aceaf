"""Models that a config can name, and loading them."""

from .loading import as_pruned, build_model, load_model, load_weights
from .pruned import build_pruned_model

__all__ = [
    'as_pruned',
    'build_model',
    'build_pruned_model',
    'load_model',
    'load_weights',
]
