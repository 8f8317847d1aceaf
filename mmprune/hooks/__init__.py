"""Hooks for a stock mmengine Runner."""

from .plan_hook import PlanHook

__all__ = ['PlanHook']
