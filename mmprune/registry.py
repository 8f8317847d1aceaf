"""Registries of mmprune: children of mmengine's, found by ``mmprune.X``."""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
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
    locations=['mmprune.models', 'mmprune.models.timm_classifier'],
)
TASK_UTILS = Registry(
    'task util',
    parent=MMENGINE_TASK_UTILS,
    scope='mmprune',
    locations=[
        'mmprune.family',
        'mmprune.importance',
        'mmprune.pruners',
        'mmprune.schedule',
    ],
)
FUNCTIONS = Registry(
    'function',
    parent=MMENGINE_FUNCTIONS,
    scope='mmprune',
    locations=['mmprune.adapters', 'mmprune.hooks'],
)
LOOPS = Registry(
    'loop',
    parent=MMENGINE_LOOPS,
    scope='mmprune',
    locations=['mmprune.loops'],
)
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmprune',
    locations=['mmprune.datasets'],
)
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='mmprune',
    locations=['mmprune.datasets'],
)
METRICS = Registry(
    'metric',
    parent=MMENGINE_METRICS,
    scope='mmprune',
    locations=['mmprune.metrics'],
)
