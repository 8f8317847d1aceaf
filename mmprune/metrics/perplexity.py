"""How well the next token is foreseen."""

import math
from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from ..registry import METRICS


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
