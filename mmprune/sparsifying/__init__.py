"""Sparsity that grows while a model is trained, for hooks and loops alike."""

from .gradients import GradientAverages, UnitChanges
from .growth import Growth
from .masking import Masking
from .penalty import DecayPenalty
from .rewind import RewindPoint

__all__ = [
    'DecayPenalty',
    'GradientAverages',
    'Growth',
    'Masking',
    'RewindPoint',
    'UnitChanges',
]
