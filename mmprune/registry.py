"""Registries of mmprune: children of mmengine's, found by ``mmprune.X``."""

from mmengine import registry as parents
from mmengine.registry import Registry

# `locations` are imported when a config first asks for `mmprune.X`, so a
# stock Runner needs no `custom_imports`.
HOOKS = Registry(
    'hook',
    parent=parents.HOOKS,
    scope='mmprune',
    locations=['mmprune.hooks'],
)
MODELS = Registry(
    'model',
    parent=parents.MODELS,
    scope='mmprune',
    locations=[
        'mmprune.models',
        'mmprune.models.huggingface_causal_lm',
        'mmprune.models.lora',
        'mmprune.models.timm_classifier',
    ],
)
MODEL_WRAPPERS = Registry(
    'model wrapper',
    parent=parents.MODEL_WRAPPERS,
    scope='mmprune',
    locations=['mmprune.models.sharded'],
)
TASK_UTILS = Registry(
    'task util',
    parent=parents.TASK_UTILS,
    scope='mmprune',
    locations=[
        'mmprune.families',
        'mmprune.family',
        'mmprune.importance',
        'mmprune.pruners',
        'mmprune.schedule',
    ],
)
FUNCTIONS = Registry(
    'function',
    parent=parents.FUNCTIONS,
    scope='mmprune',
    locations=['mmprune.adapters', 'mmprune.hooks'],
)
LOOPS = Registry(
    'loop',
    parent=parents.LOOPS,
    scope='mmprune',
    locations=['mmprune.loops'],
)
DATASETS = Registry(
    'dataset',
    parent=parents.DATASETS,
    scope='mmprune',
    locations=['mmprune.datasets'],
)
TRANSFORMS = Registry(
    'transform',
    parent=parents.TRANSFORMS,
    scope='mmprune',
    locations=['mmprune.datasets'],
)
METRICS = Registry(
    'metric',
    parent=parents.METRICS,
    scope='mmprune',
    locations=['mmprune.metrics'],
)
