"""Hooks for a stock mmengine Runner."""

from .checkpoint_hook import CheckpointWriteError, SafeCheckpointHook
from .early_stop_hook import EarlyStopHook
from .export_hook import ExportHook
from .gradual_pruning_hook import GradualPruningHook
from .group_penalty_hook import GroupPenaltyHook
from .mask_hook import MaskHook
from .plan_hook import PlanHook
from .seed_hook import SeedHook, seed_worker
from .unread_data_hook import UnreadDataHook

__all__ = [
    'CheckpointWriteError',
    'EarlyStopHook',
    'ExportHook',
    'GradualPruningHook',
    'GroupPenaltyHook',
    'MaskHook',
    'PlanHook',
    'SafeCheckpointHook',
    'SeedHook',
    'UnreadDataHook',
    'seed_worker',
]
