"""How well the next token is foreseen."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..registry import METRICS


@torch.no_grad()
def perplexity(
    model: nn.Module, windows: Dataset, batch_size: int = 1
) -> float:
    """Returns the perplexity of a model, as :class:`Perplexity` does.

    Args:
        model: A ``mmprune.HuggingFaceCausalLM``; it is left in eval mode.
        windows: ``dict(input_ids=[seqlen])`` each.
        batch_size: Windows at a time.
    """
    model.eval()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for batch in DataLoader(windows, batch_size):
        ids = batch['input_ids'].to(device)
        for found in model(input_ids=ids, mode='predict'):
            total += found.loss_sum
            count += found.num_tokens
    return math.exp(min(total / count, 700.0))


@METRICS.register_module()
class Perplexity(BaseMetric):
    """exp of the mean loss over all predictions of all windows.

    As papers on pruning measure it: windows that do not overlap, each read
    without what came before. It depends on the length of the windows and on
    whether each begins with a BOS token, which is reported beside it.
    """

    default_prefix = ''

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps the loss of each window.

        Args:
            data_batch: Not used.
            data_samples: Predictions with ``loss_sum`` and ``num_tokens``.
        """
        self.results += [
            (sample['loss_sum'], sample['num_tokens'])
            for sample in data_samples
        ]

    def compute_metrics(
        self, results: list[tuple[float, int]]
    ) -> dict[str, float]:
        """Returns the perplexity, and the number of windows it is of."""
        total = math.fsum(loss for loss, _ in results)
        count = sum(count for _, count in results)
        return dict(
            perplexity=math.exp(min(total / count, 700.0)),
            windows=len(results),
            context=results[0][1] + 1,
            bos=int((self.dataset_meta or {}).get('bos', False)),
        )
