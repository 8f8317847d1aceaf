"""Sequence classifiers of Hugging Face as mmengine models."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.huggingface import check_folder
from ..registry import MODELS
from .classifier import Classifier


@MODELS.register_module(name='HuggingFaceClassifier')
def build_huggingface_classifier(
    config: str | Mapping,
    pretrained: str | bool | None = None,
    num_labels: int = 2,
    label_smoothing: float = 0.0,
    attention: str | None = None,
    data_preprocessor: dict | nn.Module | None = None,
    trust: bool = False,
) -> nn.Module:
    """Returns a sequence classifier that mmengine can train.

    There is no wrapper: the keys of the state dict are those of transformers.
    DistilBERT, BERT and RoBERTa take the number of heads from the weights,
    so layers may keep different numbers of them.

    Args:
        config: Folder or hub name of the architecture, or its ``config.json``
            as a dict with ``model_type``.
        pretrained: Folder or hub name whose weights are loaded, ``True`` for
            that of ``config``; without it weights are random. The layers
            that a folder lacks, as a new head, stay random.
        num_labels: Number of classes.
        label_smoothing: Of the cross entropy.
        attention: What computes attention, as ``eager`` or ``sdpa``; left
            out, transformers chooses.
        data_preprocessor: As in any mmengine model.
        trust: Whether to load a folder that has nothing but pickles.

    Raises:
        ValueError: If transformers is absent, there is no such model, or it
            cannot be loaded without running code of its folder.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            'HuggingFaceClassifier needs the package transformers; pip '
            "install 'mmprune[llm]'"
        ) from error
    if pretrained is True:
        pretrained = config if isinstance(config, str) else None
        if pretrained is None:
            raise ValueError(
                'HuggingFaceClassifier: pretrained=True takes the weights of '
                'the folder or hub name in `config`, which is a dict; name '
                'the folder'
            )
    auto = transformers.AutoModelForSequenceClassification
    source = pretrained or config
    options = {} if attention is None else dict(attn_implementation=attention)
    try:
        wanted = _config(transformers.AutoConfig, config, num_labels)
        if pretrained:
            net = auto.from_pretrained(
                pretrained,
                config=wanted,
                dtype=torch.float32,
                use_safetensors=check_folder(pretrained, trust),
                trust_remote_code=False,
                **options,
            )
        else:
            net = auto.from_config(wanted, trust_remote_code=False, **options)
    except (OSError, KeyError, RuntimeError, ImportError) as error:
        place = source if isinstance(source, str) else 'the config'
        first = str(error).strip().splitlines()[0][:200]
        raise ValueError(
            f'{place} is no sequence classifier that transformers can build: '
            f'{first}; give a folder with config.json and safetensors, or a '
            'name of the hub'
        ) from error
    net.__class__ = _classifier_class(type(net))
    net.adopt(data_preprocessor, label_smoothing)
    return net


class TextClassifier(Classifier):
    """A network that takes its inputs by name and returns ``.logits``."""

    def scores(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns class scores ``[B, classes]``.

        Args:
            inputs: ``input_ids`` and ``attention_mask`` ``[B, L]``, and what
                else the network takes.
        """
        return self.network.forward(self, **inputs).logits


@functools.cache
def _classifier_class(kind: type) -> type:
    # transformers writes the name of the class into config.json.
    return type(
        kind.__name__,
        (TextClassifier, kind),
        dict(network=kind, __module__=kind.__module__),
    )


def _config(auto: Any, config: str | Mapping, num_labels: int) -> Any:
    if not isinstance(config, Mapping):
        return auto.from_pretrained(
            str(config), num_labels=num_labels, trust_remote_code=False
        )
    entries = {**config, 'num_labels': num_labels}
    kind = entries.pop('model_type', None)
    if kind is None:
        raise ValueError(
            'HuggingFaceClassifier: the config has no `model_type`, as '
            "'distilbert'; add it"
        )
    return auto.for_model(kind, **entries)
