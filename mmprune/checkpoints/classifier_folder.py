"""A pruned Hugging Face model as a folder that transformers can read."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from ..atomic_file import write_whole
from .huggingface import WEIGHTS, save_tensors


def save_folder(
    model: nn.Module, folder: str | Path, tokenizer: Any = None
) -> None:
    """Writes config, weights, plan and tokenizer of a model into a folder.

    ``config.json`` is that of the dense model, because it has one number of
    heads for all layers; ``pruned_units.json`` says which ones each layer
    kept. Three lines of plain code load it (docs/prune_distilbert.md), or
    ``mmprune.PrunedModel`` with ``plan.json``.

    Args:
        model: A ``mmprune.HuggingFaceClassifier``, pruned or dense.
        folder: Where.
        tokenizer: That of its data set.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        **model.config.to_dict(),
        'architectures': [type(model).__name__],
    }
    write_whole(
        folder / 'config.json', json.dumps(config, indent=1).encode() + b'\n'
    )
    save_tensors(model.state_dict(), folder / WEIGHTS)
    if tokenizer is not None:
        write_whole(folder / 'tokenizer.json', tokenizer.to_str().encode())
    plan = getattr(model, 'pruning_plan', None)
    if plan is not None:
        plan.save(folder / 'plan.json')
        units = {
            group.name: {f'{group.granularity}s': plan.keep[group.name]}
            for group in plan.groups
        }
        write_whole(
            folder / 'pruned_units.json', json.dumps(units).encode() + b'\n'
        )
