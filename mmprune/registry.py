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
        'mmprune.models.huggingface_classifier',
        'mmprune.models.timm_classifier',
    ],
)
TASK_UTILS = Registry(
    'task util',
    parent=parents.TASK_UTILS,
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
    parent=parents.FUNCTIONS,
    scope='mmprune',
    locations=['mmprune.adapters', 'mmprune.datasets', 'mmprune.hooks'],
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
DATA_SAMPLERS = Registry(
    'data sampler',
    parent=parents.DATA_SAMPLERS,
    scope='mmprune',
    locations=['mmprune.datasets'],
)
METRICS = Registry(
    'metric',
    parent=parents.METRICS,
    scope='mmprune',
    locations=['mmprune.metrics'],
)
