"""Training a pruned model with the dense one as its teacher."""

import os
from pathlib import Path

from mmengine.config import Config

# For a config that does not say in `distillation` what to imitate: all
# outputs of the model.
DEFAULT_TERMS = (dict(loss='mse'),)


def distilled(
    cfg: Config, checkpoint: Path, folder: Path, weight: float
) -> None:
    """Makes the model of a training config learn from the dense one too.

    What it imitates are the ``distillation`` terms of the config, see
    ``mmprune.DistilledModel``.

    Args:
        cfg: The training config of a pruned model, changed in place.
        checkpoint: Weights of the dense model.
        folder: Where the training config will be; the weights are named
            relative to it.
        weight: Times the weight of each term.
    """
    student = cfg.model.to_dict()
    # Both models take it, so it belongs to the outer entry.
    outer = {
        key: student.pop(key)
        for key in ('data_preprocessor',)
        if key in student
    }
    path = os.path.relpath(checkpoint.resolve(), folder.resolve())
    terms = [dict(term) for term in cfg.get('distillation', DEFAULT_TERMS)]
    for term in terms:
        term['weight'] = weight * term.get('weight', 1.0)
    cfg.model = dict(
        type='mmprune.DistilledModel',
        student=student,
        teacher_checkpoint='{{ fileDirname }}/' + path,
        terms=terms,
        **outer,
    )
