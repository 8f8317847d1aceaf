"""Prune OpenMMLab and other PyTorch models into smaller ordinary models."""

from typing import TYPE_CHECKING, Any

from mmprune import compat

if TYPE_CHECKING:
    from mmprune.checkpoints.loading import load_model
    from mmprune.loops.sparse_trainer import SparseTrainer
    from mmprune.plan import PruningPlan
    from mmprune.pruning import prune

__all__ = ['PruningPlan', 'SparseTrainer', 'load_model', 'prune']

# Name -> where it is. Imported when first asked for: every command imports
# this package, and `--help` needs no PyTorch.
_PLACES = {
    'PruningPlan': 'mmprune.plan',
    'SparseTrainer': 'mmprune.loops.sparse_trainer',
    'load_model': 'mmprune.checkpoints.loading',
    'prune': 'mmprune.pruning',
}

compat.install()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
