"""Registries of mmprune: children of mmengine's, found by ``mmprune.X``."""

from mmengine import registry as parents
from mmengine.registry import Registry


def _child(parent: Registry, *places: str) -> Registry:
    """A registry that imports ``places`` when a config first asks for
    ``mmprune.X``, so that a stock Runner needs no ``custom_imports``."""
    locations = [f'mmprune.{place}' for place in places]
    return Registry(
        parent.name, parent=parent, scope='mmprune', locations=locations
    )


HOOKS = _child(parents.HOOKS, 'hooks')
MODELS = _child(
    parents.MODELS,
    'models',
    'models.huggingface_causal_lm',
    'models.huggingface_classifier',
    'models.lora',
    'models.timm_classifier',
    'quantization',
)
MODEL_WRAPPERS = _child(parents.MODEL_WRAPPERS, 'models.sharded')
TASK_UTILS = _child(
    parents.TASK_UTILS,
    'families',
    'family',
    'importance',
    'pruners',
    'schedule',
)
FUNCTIONS = _child(
    parents.FUNCTIONS, 'adapters', 'datasets', 'discovery', 'hooks'
)
LOOPS = _child(parents.LOOPS, 'loops')
DATASETS = _child(parents.DATASETS, 'datasets')
DATA_SAMPLERS = _child(parents.DATA_SAMPLERS, 'datasets')
TRANSFORMS = _child(parents.TRANSFORMS, 'datasets')
METRICS = _child(parents.METRICS, 'metrics')
OPTIM_WRAPPERS = _child(parents.OPTIM_WRAPPERS, 'optim')
