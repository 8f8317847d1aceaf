"""Training a pruned model: recipe, start checkpoint, run."""

from .recipe import FINE_TUNE, RETRAIN, with_amp, with_safety
from .run import (
    data_problem,
    evaluate,
    last_checkpoint,
    run_training,
    runner_for,
    trained,
)
from .stage import Stage, Wanted, check, prepare
from .start import digest

__all__ = [
    'FINE_TUNE',
    'RETRAIN',
    'Stage',
    'Wanted',
    'check',
    'data_problem',
    'digest',
    'evaluate',
    'last_checkpoint',
    'prepare',
    'run_training',
    'runner_for',
    'trained',
    'with_amp',
    'with_safety',
]
