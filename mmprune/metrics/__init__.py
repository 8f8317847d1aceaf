"""Metrics that a config can name."""

from .accuracy import Accuracy

__all__ = ['Accuracy']
