"""Metrics that a config can name."""

from .accuracy import Accuracy
from .perplexity import Perplexity

__all__ = ['Accuracy', 'Perplexity']
