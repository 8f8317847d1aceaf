"""Image classifiers of timm as mmengine models."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..checks import check_choice
from ..registry import MODELS
from .pretrained import load_pretrained


@MODELS.register_module(name='TimmClassifier')
def build_timm_classifier(
    model: str,
    pretrained: str | dict | None = None,
    label_smoothing: float = 0.0,
    data_preprocessor: dict | nn.Module | None = None,
    **options: Any,
) -> nn.Module:
    """Returns a timm model that mmengine can train; there is no wrapper.

    The keys of the state dict are timm's. After surgery timm's attention
    takes its widths from ``num_heads`` and ``attn_dim``, which the plan sets.

    Args:
        model: timm's name, as ``vit_small_patch16_224``.
        pretrained: ``None``; the path of a checkpoint; ``'timm'`` for timm's
            own weights, which timm fetches if they are not in its cache; or
            ``dict(source=..., ...)`` with the further options of
            :func:`mmprune.models.pretrained.load_pretrained`.
        label_smoothing: Of the cross entropy.
        data_preprocessor: As in any mmengine model.
        options: Further arguments of ``timm.create_model``, as
            ``num_classes``, ``img_size``, ``patch_size`` and ``depth``.

    Raises:
        ValueError: If timm is absent, does not know the model or an option,
            or the pretrained weights do not fit.
    """
    net = _create(model, options)
    net.__class__ = _classifier_class(type(net))
    net.adopt(data_preprocessor, label_smoothing)
    if pretrained:
        if isinstance(pretrained, str):
            pretrained = dict(source=pretrained)
        moved = load_pretrained(net, timm_name=model, **pretrained)
        net.pretrained_tensors = moved.count
    return net


class Classifier(BaseModel):
    """What mmengine needs of a network that returns class scores.

    It is put before the network's own class, so that parameters keep their
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
        """Does nothing: timm has set the weights when it built them."""

    def forward(
        self,
        inputs: Tensor,
        data_samples: Tensor | Sequence[int] | None = None,
        mode: str = 'tensor',
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Returns class scores, the loss, or predictions.

        Inputs are images ``[B, C, H, W]``, data samples labels ``[B]``.

        Raises:
            ValueError: If the mode is another, or labels are missing.
        """
        check_choice('mode', mode, ('tensor', 'loss', 'predict'))
        logits = self.network.forward(self, inputs)
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


@functools.cache
def _classifier_class(kind: type) -> type:
    return type(
        f'{kind.__name__}Classifier', (Classifier, kind), dict(network=kind)
    )


def _create(model: str, options: dict) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f'TimmClassifier builds {model!r} with timm; pip install timm'
        ) from error
    if not timm.is_model(model):
        near = timm.list_models(f'*{model.split("_")[0]}*')[:3]
        raise ValueError(
            f'timm {timm.__version__} has no model {model!r}'
            + (f'; it has {", ".join(near)}' if near else '')
        )
    try:
        return timm.create_model(model, pretrained=False, **options)
    except (TypeError, AssertionError) as error:
        raise ValueError(f'timm cannot build {model}: {error}') from error
