"""How often the right class is among the best."""

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from ..registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Top-k accuracy in percent, as ``Acc@1``, ``Acc@5``.

    Args:
        topk: The k to report.
        kwargs: As for mmengine's ``BaseMetric``.

    Raises:
        ValueError: If a k is below 1.
    """

    default_prefix = ''

    def __init__(self, topk: Sequence[int] = (1,), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if any(k < 1 for k in topk):
            raise ValueError(f'topk counts from 1, found {list(topk)}')
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps the rank of the right class (``gt_label``) of each prediction
        (``pred_scores``, ``[classes]``)."""
        for sample in data_samples:
            scores, label = sample['pred_scores'], int(sample['gt_label'])
            # Of equal scores the first is the prediction; NaN is never right.
            ahead = ~(scores <= scores[label])
            ahead[:label] |= scores[:label] == scores[label]
            self.results.append(int(ahead.sum()))

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Returns the accuracies of all predictions."""
        return {
            f'Acc@{k}': 100 * sum(rank < k for rank in results) / len(results)
            for k in self.topk
        }
