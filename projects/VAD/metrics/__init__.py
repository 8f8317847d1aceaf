"""Metrics of VAD; ``VADMetric`` is the one that configs name."""

from .vad_metric import VADMetric

__all__ = ['VADMetric']
