"""Criteria: which units matter. One file each, registered by class name."""

from .bn_scale import BNScale
from .magnitude import Magnitude
from .random import Random
from .taylor import Taylor

__all__ = ['BNScale', 'Magnitude', 'Random', 'Taylor']
