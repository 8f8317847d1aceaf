"""Registries of mmprune: children of mmengine's, found by ``mmprune.X``."""

from mmengine import registry as parents
from mmengine.registry import Registry


def _child(name: str, *places: str) -> Registry:
    """Returns the child of a registry of mmengine.

    The places are imported when a config first asks for ``mmprune.X``, so a
    stock Runner needs no ``custom_imports``.
    """
    parent = getattr(parents, name)
    return Registry(
        parent.name,
        parent=parent,
        scope='mmprune',
        locations=[f'mmprune.{place}' for place in places],
    )


HOOKS = _child('HOOKS', 'hooks')
MODELS = _child(
    'MODELS',
    'models',
    'models.huggingface_causal_lm',
    'models.lora',
    'models.timm_classifier',
)
MODEL_WRAPPERS = _child('MODEL_WRAPPERS', 'models.sharded')
TASK_UTILS = _child(
    'TASK_UTILS', 'families', 'family', 'importance', 'pruners', 'schedule'
)
FUNCTIONS = _child('FUNCTIONS', 'adapters', 'hooks')
LOOPS = _child('LOOPS', 'loops')
DATASETS = _child('DATASETS', 'datasets')
TRANSFORMS = _child('TRANSFORMS', 'datasets')
METRICS = _child('METRICS', 'metrics')
