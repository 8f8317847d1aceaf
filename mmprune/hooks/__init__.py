"""Hooks for a stock mmengine Runner."""

from .checkpoint_hook import CheckpointWriteError, SafeCheckpointHook
from .early_stop_hook import EarlyStopHook
from .export_hook import ExportHook
from .gradual_pruning_hook import GradualPruningHook
from .group_penalty_hook import GroupPenaltyHook
from .lora_hook import LoraHook
from .mask_hook import MaskHook
from .needed_weights_hook import NeededWeightsHook, check_weights
from .plan_hook import PlanHook
from .seed_hook import SeedHook, seed_worker
from .unread_data_hook import UnreadDataHook

__all__ = [
    'CheckpointWriteError',
    'EarlyStopHook',
    'ExportHook',
    'GradualPruningHook',
    'GroupPenaltyHook',
    'LoraHook',
    'MaskHook',
    'NeededWeightsHook',
    'PlanHook',
    'SafeCheckpointHook',
    'SeedHook',
    'UnreadDataHook',
    'check_weights',
    'seed_worker',
]
