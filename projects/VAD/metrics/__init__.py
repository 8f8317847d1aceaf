"""Metrics of VAD; ``VADMetric`` is the one that configs name."""

from .vad_metric import VADMetric, parts_of

__all__ = ['VADMetric', 'parts_of']
