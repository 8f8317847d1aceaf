"""Models that a config can name, and loading them."""

from ..checkpoints.loading import (
    build_model,
    fitted,
    load_model,
    load_weights,
    loaded_model,
)
from ..checkpoints.writing import pruned_model_config
from .distilled import build_distilled_model
from .pruned import build_pruned_model

__all__ = [
    'build_distilled_model',
    'build_model',
    'build_pruned_model',
    'fitted',
    'load_model',
    'load_weights',
    'loaded_model',
    'pruned_model_config',
]
