"""Train loops that a config can name."""

from .iterative import IterativePruningLoop

__all__ = ['IterativePruningLoop']
