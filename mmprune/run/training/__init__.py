"""Training a pruned model: recipe, start checkpoint, run."""

from .recipe import FINE_TUNE, RETRAIN, with_amp, with_safety
from .run import (
    data_problem,
    evaluate,
    evaluated_data,
    last_checkpoint,
    run_training,
    runner_for,
    runner_with,
    trained,
)
from .stage import Stage, check, check_parts, prepare, recipe_of
from .start import digest

__all__ = [
    'FINE_TUNE',
    'RETRAIN',
    'Stage',
    'check',
    'check_parts',
    'data_problem',
    'digest',
    'evaluate',
    'evaluated_data',
    'last_checkpoint',
    'prepare',
    'recipe_of',
    'run_training',
    'runner_for',
    'runner_with',
    'trained',
    'with_amp',
    'with_safety',
]
