"""Detectors of mmdet as their stock configs describe them."""

from .family import DetectorFamily

__all__ = ['DetectorFamily']
