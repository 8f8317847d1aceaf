"""Families of models that need more than :class:`mmprune.family.Family`."""

from .causal_lm import CausalLMFamily

__all__ = ['CausalLMFamily']
