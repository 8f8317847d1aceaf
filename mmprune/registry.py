"""Registries of mmprune: children of mmengine's, found by ``mmprune.X``."""

from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import Registry

# `locations` are imported when a config first asks for `mmprune.X`, so a
# stock Runner needs no `custom_imports`.
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmprune',
    locations=['mmprune.hooks'],
)
MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmprune',
    locations=['mmprune.models'],
)
TASK_UTILS = Registry(
    'task util',
    parent=MMENGINE_TASK_UTILS,
    scope='mmprune',
    locations=['mmprune.importance', 'mmprune.pruners'],
)
FUNCTIONS = Registry(
    'function',
    parent=MMENGINE_FUNCTIONS,
    scope='mmprune',
    locations=['mmprune.adapters'],
)
