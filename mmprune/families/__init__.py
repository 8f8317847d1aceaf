"""Families of models that need more than :class:`mmprune.family.Family`."""

from .causal_lm import CausalLMFamily
from .detector import DetectorFamily

__all__ = ['CausalLMFamily', 'DetectorFamily']
