"""Registries of mmprune: children of mmengine's, found by ``mmprune.X``."""

from mmengine import registry as parents
from mmengine.registry import Registry


def _child(parent: Registry, *modules: str) -> Registry:
    # `locations` are imported when a config first asks for `mmprune.X`, so a
    # stock Runner needs no `custom_imports`.
    places = [f'mmprune.{module}' for module in modules]
    return Registry(
        parent.name, parent=parent, scope='mmprune', locations=places
    )


HOOKS = _child(parents.HOOKS, 'hooks')
MODELS = _child(
    parents.MODELS,
    'models',
    'models.huggingface_classifier',
    'models.timm_classifier',
    'quantization',
)
TASK_UTILS = _child(
    parents.TASK_UTILS, 'family', 'importance', 'pruners', 'schedule'
)
FUNCTIONS = _child(parents.FUNCTIONS, 'adapters', 'datasets', 'hooks')
LOOPS = _child(parents.LOOPS, 'loops')
DATASETS = _child(parents.DATASETS, 'datasets')
DATA_SAMPLERS = _child(parents.DATA_SAMPLERS, 'datasets')
TRANSFORMS = _child(parents.TRANSFORMS, 'datasets')
METRICS = _child(parents.METRICS, 'metrics')
OPTIM_WRAPPERS = _child(parents.OPTIM_WRAPPERS, 'optim')
