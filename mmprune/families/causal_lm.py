"""What pruning needs to know about causal language models."""

import copy
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..checkpoints.huggingface import check_folder
from ..family import Family
from ..registry import DATASETS, TASK_UTILS

# Where a model says how long its texts may be.
_LENGTHS = ('max_position_embeddings', 'n_positions', 'seq_length')
# What a context may be at most where nobody asks for more: some models take
# 128 k tokens.
LONGEST = 2048
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_EXAMPLE = 32


@TASK_UTILS.register_module()
class CausalLMFamily(Family):
    """Groups by adapters; windows of tokens as example and calibration.

    Args:
        cfg: Config of the model.
        adapters: As in :class:`mmprune.family.Family`.
        calibration: Config of the data set of windows that criteria see, as
            ``dict(type='mmprune.TokenWindows', ...)``.
        batch_size: Windows in a batch of it.
        weights: Config of the pruner of single weights, without sparsity and
            pattern, which options give; by default Wanda's, block by block.
    """

    def __init__(
        self,
        cfg: Config,
        adapters: Sequence[str] = ('mmprune.llama_groups',),
        calibration: dict | None = None,
        batch_size: int = 1,
        weights: dict | None = None,
    ) -> None:
        super().__init__(cfg, adapters)
        self.calibration, self.batch_size = calibration, batch_size
        self.weights = weights or dict(type='mmprune.LayerwisePruner')

    def weight_pruner(
        self, sparsity: float | None, pattern: str | None, protect: Sequence
    ) -> Any:
        """Returns what zeroes single weights of the model.

        Args:
            sparsity: The fraction, without a pattern.
            pattern: As of :class:`mmprune.pruners.WeightPruner`.
            protect: Regular expressions of weights that stay dense.
        """
        asked = dict(sparsity=sparsity, pattern=pattern, protect=protect)
        return TASK_UTILS.build({**self.weights, **asked})

    @classmethod
    def use_checkpoint(cls, cfg: Config, checkpoint: str | Path) -> None:
        """Fills in what the folder of a model says, in place.

        That is the model itself, its tokenizer for texts that name none, and
        the length of windows that have none.

        Args:
            cfg: A config of this family.
            checkpoint: Folder or hub name of the model, or any checkpoint of
                a config that names its model.
        """
        if not Path(checkpoint).is_file() and not cfg.model.get('config'):
            check_folder(checkpoint)
            cfg.model.config = str(checkpoint)
        source = cfg.model.get('config')
        for dataset in _datasets(cfg):
            if dataset.get('tokenizer') is None and isinstance(source, str):
                dataset.tokenizer = source
            if dataset.get('seqlen') is None:
                dataset.seqlen = context_length(cfg.model)

    @property
    def source(self) -> str:
        """What the example is."""
        return f'{_EXAMPLE} token numbers in order'

    @property
    def calibration_source(self) -> str:
        """What the batches are."""
        asked = self._dataset_config
        return (
            f'{asked.get("num_windows")} windows of {asked.get("seqlen")} '
            f'tokens of {asked.get("source", "generated")}'
        )

    def forward(self, model: nn.Module) -> Tensor:
        """Returns the logits for a row of tokens, to compare models."""
        size = model.get_input_embeddings().num_embeddings
        length = min(_EXAMPLE, context_length(model.config.to_dict()))
        tokens = torch.arange(length, device=model.device) % size
        with torch.no_grad():
            return model(input_ids=tokens[None], mode='tensor')

    def batches(self) -> list[dict[str, Tensor]]:
        """Returns the calibration windows, ``[batch_size, seqlen]`` each."""
        windows = self._windows
        stacked = torch.stack([w['input_ids'] for w in windows])
        return [
            dict(input_ids=part) for part in stacked.split(self.batch_size)
        ]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Returns the mean loss of a batch.

        Raises:
            ValueError: If it has a token that the model lacks.
        """
        check_tokens(model, int(batch['input_ids'].max()), 'the text')
        data = model.data_preprocessor(copy.copy(batch), False)
        return model(**data, mode='loss')['loss']

    @property
    def _dataset_config(self) -> dict:
        if self.calibration is None:
            raise ValueError(
                f'{self.cfg.filename} names no calibration data; give '
                "pruning.calibration=dict(type='mmprune.TokenWindows', ...)"
            )
        return self.calibration

    @cached_property
    def _windows(self) -> Any:
        return DATASETS.build(copy.deepcopy(dict(self._dataset_config)))


def context_length(config: dict) -> int:
    """Returns how many tokens a window has where nobody says it.

    Args:
        config: The ``config.json`` of a model as a dict, or the config of a
            ``mmprune.HuggingFaceCausalLM``.
    """
    entries = config
    for key in ('pretrained', 'config'):
        found = config.get(key)
        if isinstance(found, str):
            path = Path(found).expanduser() / 'config.json'
            if path.is_file():
                entries = json.loads(path.read_text())
                break
        elif found:
            entries = found
    lengths = [entries[k] for k in _LENGTHS if entries.get(k)]
    return min([LONGEST, *lengths])


def check_tokens(model: nn.Module, largest: int, what: str) -> None:
    """Refuses tokens that a model does not have.

    Args:
        model: The model.
        largest: The largest token number.
        what: What they are, for the sentence.

    Raises:
        ValueError: If there are some.
    """
    size = model.get_input_embeddings().num_embeddings
    if largest >= size:
        raise ValueError(
            f'{what} has the token {largest}, and the model knows {size}: '
            'the tokenizer is that of another model; name the right one'
        )


def _datasets(cfg: Config) -> list[dict]:
    """The data sets of windows in a config."""
    places = [(cfg.get(key) or {}).get('dataset') for key in _LOADERS]
    places.append((cfg.get('pruning') or {}).get('calibration'))
    return [
        place
        for place in places
        if place and place.get('type') == 'mmprune.TokenWindows'
    ]
