"""What mmengine needs of a network that returns class scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..checks import check_choice
from ..registry import MODELS

Inputs = Tensor | Mapping[str, Tensor]


class Classifier(BaseModel):
    """Put before the class of a built network, so that parameters keep their
    names.

    Attributes:
        network: The network's own class.
    """

    network: type

    def adopt(
        self, data_preprocessor: dict | nn.Module | None, smoothing: float
    ) -> None:
        """Adds what ``BaseModel.__init__`` would add to a built network."""
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = MODELS.build(
                data_preprocessor or dict(type='BaseDataPreprocessor')
            )
        self.data_preprocessor = data_preprocessor
        self.label_smoothing = smoothing
        self.pretrained_tensors = 0
        self.init_cfg = None
        self._is_init = True

    def init_weights(self, *_: Any, **__: Any) -> None:
        """Does nothing: the library has set the weights when it built them."""

    def scores(self, inputs: Inputs) -> Tensor:
        """Returns class scores ``[B, classes]``."""
        return self.network.forward(self, inputs)

    def forward(
        self,
        inputs: Inputs,
        data_samples: Tensor | Sequence[int] | None = None,
        mode: str = 'tensor',
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Returns class scores, the loss, or predictions.

        Args:
            inputs: Images ``[B, C, H, W]``, or what the network takes by
                name.
            data_samples: Labels ``[B]``.
            mode: ``tensor``, ``loss`` or ``predict``.

        Raises:
            ValueError: If the mode is another, or labels are missing.
        """
        check_choice('mode', mode, ('tensor', 'loss', 'predict'))
        logits = self.scores(inputs)
        if mode == 'tensor':
            return logits
        labels = None
        if data_samples is not None:
            labels = torch.as_tensor(data_samples, device=logits.device)
        if mode == 'predict':
            return _predictions(logits, labels)
        if labels is None:
            raise ValueError('the loss needs labels; data_samples is None')
        loss = F.cross_entropy(
            logits.float(), labels, label_smoothing=self.label_smoothing
        )
        return dict(loss=loss)


def _predictions(
    logits: Tensor, labels: Tensor | None
) -> list[BaseDataElement]:
    scores = logits.float().softmax(1).cpu()
    found = [
        BaseDataElement(pred_scores=row, pred_label=int(row.argmax()))
        for row in scores
    ]
    if labels is not None:
        for sample, label in zip(found, labels.tolist(), strict=True):
            sample.gt_label = label
    return found
