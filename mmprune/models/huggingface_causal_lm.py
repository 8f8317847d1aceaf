"""Causal language models of Hugging Face as mmengine models."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..blocks import find_blocks
from ..checkpoints.huggingface import (
    check_folder,
    file_names,
    read_tensors,
    weight_files,
)
from ..checkpoints.loading import folder_weights, named_as
from ..checkpoints.packed import is_packed
from ..checkpoints.plain_config import PLAN_KEY
from ..checks import check_choice
from ..plan import PruningPlan
from ..registry import MODELS
from ..surgery import apply_plan

DTYPES = ('auto', 'float32', 'float16', 'bfloat16')


@MODELS.register_module(name='HuggingFaceCausalLM')
def build_huggingface_causal_lm(
    config: str | Mapping | None = None,
    pretrained: str | None = None,
    dtype: str = 'auto',
    attention: str | None = None,
    data_preprocessor: dict | nn.Module | None = None,
    trust: bool = False,
) -> nn.Module:
    """Returns a causal LM that mmengine can train; there is no wrapper.

    The keys of the state dict, ``generate``, ``save_pretrained`` and a call
    without ``mode`` are those of transformers.

    Args:
        config: Folder or hub name of the architecture, or its ``config.json``
            as a dict with ``model_type``; weights are then random. Left out
            it is that of ``pretrained``.
        pretrained: Folder or hub name of safetensors to load.
        dtype: ``auto`` for that of the weights, or its name.
        attention: What computes attention, as ``eager`` or ``sdpa``; left
            out, transformers chooses.
        data_preprocessor: As in any mmengine model.
        trust: Whether to load a folder that has nothing but pickles.

    Raises:
        ValueError: If transformers is absent, there is no model, or it cannot
            be loaded without running code of its folder.
    """
    if dtype not in DTYPES:
        raise ValueError(
            f'dtype is one of {", ".join(DTYPES)}, found {dtype!r}'
        )
    options = {} if attention is None else dict(attn_implementation=attention)
    if pretrained:
        net = _load(str(pretrained), config, dtype, trust, options)
    else:
        net = _create(config, dtype, options)
    net.__class__ = causal_lm_class(type(net))
    net.adopt(data_preprocessor)
    return net.eval()


class CausalLM(BaseModel):
    """What mmengine needs of a network that predicts the next token.

    It is put before the network's own class, so that parameters keep their
    names.

    Attributes:
        network: The network's own class.
    """

    network: type

    def adopt(self, data_preprocessor: dict | nn.Module | None) -> None:
        """Adds what ``BaseModel.__init__`` would add to a built network."""
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = MODELS.build(
                data_preprocessor or dict(type='BaseDataPreprocessor')
            )
        self.data_preprocessor = data_preprocessor
        self.init_cfg = None
        self._is_init = True

    def init_weights(self, *_: Any, **__: Any) -> None:
        """Does nothing: transformers has set the weights."""

    def run(self, mode: str, input_ids: Tensor, **inputs: Any) -> Any:
        """Returns logits, the loss, or predictions.

        Args:
            mode: ``tensor``, ``loss`` or ``predict``.
            input_ids: Tokens ``[B, L]``.
            inputs: Further arguments of the network; ``labels`` ``[B, L]``
                with -100 where a token is not to be predicted.

        Raises:
            ValueError: If the mode is another.
        """
        check_choice('mode', mode, ('tensor', 'loss', 'predict'))
        labels = inputs.pop('labels', input_ids)
        logits = self(input_ids=input_ids, use_cache=False, **inputs).logits
        if mode == 'tensor':
            return logits
        losses = token_losses(logits, labels)
        counted = labels[:, 1:] != -100
        if mode == 'loss':
            return dict(loss=losses.sum() / counted.sum())
        sums = losses.double().sum(1).tolist()
        return [
            BaseDataElement(loss_sum=total, num_tokens=int(count))
            for total, count in zip(sums, counted.sum(1), strict=True)
        ]


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns minus the log-likelihood of each next token, ``[B, L - 1]``.

    Args:
        logits: ``[B, L, vocabulary]``; any dtype, computed in float32.
        labels: ``[B, L]``; 0 is returned where they are -100.
    """
    return F.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction='none'
    )


@functools.cache
def causal_lm_class(kind: type) -> type:
    """Returns the class of a network with :class:`CausalLM` before it."""

    # transformers reads the signature of a model's forward.
    @functools.wraps(kind.forward)
    def forward(self, *args: Any, mode: str | None = None, **kwargs: Any):
        if mode is None:
            return kind.forward(self, *args, **kwargs)
        return self.run(mode, *args, **kwargs)

    return type(
        kind.__name__,
        (CausalLM, kind),
        # save_pretrained writes the name of the class.
        dict(network=kind, forward=forward, __module__=kind.__module__),
    )


def _load(
    source: str,
    config: str | Mapping | None,
    dtype: str,
    trust: bool,
    options: dict,
) -> nn.Module:
    transformers = _transformers()
    safe = check_folder(source, trust)
    changes = dict(config) if isinstance(config, Mapping) else {}
    plan = _own_plan(source)
    if safe and (plan or is_packed(source)):
        find = transformers.AutoConfig.from_pretrained
        found = _asked(source, find, source, **changes)
        net = _create(found, dtype, options)
        if plan:
            apply_plan(net, PruningPlan.load(source))
        return _filled(net, folder_weights(source))
    return _asked(
        source,
        transformers.AutoModelForCausalLM.from_pretrained,
        source,
        dtype=dtype,
        use_safetensors=safe,
        trust_remote_code=False,
        **options,
        **changes,
    )


def _create(
    config: str | Mapping | None, dtype: str, options: dict
) -> nn.Module:
    transformers = _transformers()
    if config is None:
        raise ValueError(
            'HuggingFaceCausalLM: there is no model; give `pretrained`, the '
            'folder or hub name of one, or `config`'
        )
    if isinstance(config, Mapping):
        entries = dict(config)
        kind = entries.pop('model_type', None)
        if kind is None:
            raise ValueError(
                'HuggingFaceCausalLM: the config has no `model_type`, as '
                "'llama'; add it"
            )
        found = _asked(
            None, transformers.AutoConfig.for_model, kind, **entries
        )
    elif isinstance(config, str):
        find = transformers.AutoConfig.from_pretrained
        found = _asked(config, find, config, trust_remote_code=False)
    else:
        found = config
    if dtype != 'auto':
        options = {**options, 'dtype': getattr(torch, dtype)}
    elif getattr(found, 'dtype', None) is not None:
        options = {**options, 'dtype': found.dtype}
    return _asked(
        config,
        transformers.AutoModelForCausalLM.from_config,
        found,
        trust_remote_code=False,
        **options,
    )


def _own_plan(source: str) -> bool:
    """Whether a folder's config is that of the dense model."""
    path = Path(source) / 'config.json'
    return path.is_file() and PLAN_KEY in json.loads(path.read_text())


def _filled(net: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Loads all weights of a model; a tied one has one of its names."""
    weights = named_as(net, weights)
    wrong = net.load_state_dict(weights, strict=False)
    named = dict(net.named_parameters(remove_duplicate=False))
    there = {id(named[name]) for name in weights.keys() & named.keys()}
    missing = [n for n in wrong.missing_keys if id(named.get(n)) not in there]
    if missing or wrong.unexpected_keys:
        odd = [*missing, *wrong.unexpected_keys][0]
        raise ValueError(
            f'the packed weights are not those of the config beside them: '
            f'{odd} is in one of them alone'
        )
    return net


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            'HuggingFaceCausalLM needs the package transformers; pip install '
            "'mmprune[llm]'"
        ) from error
    return transformers


def _asked(source: Any, make: Callable, *args: Any, **options: Any) -> Any:
    """Calls transformers and says in one sentence why it could not."""
    try:
        return make(*args, **options)
    except (OSError, KeyError, RuntimeError, ImportError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:200]
        place = source if isinstance(source, str | Path) else 'the config'
        raise ValueError(
            f'{place} is no causal language model that transformers can '
            f'build: {first}; give a folder with config.json and '
            'safetensors, or a name of the hub'
        ) from error


def build_streamed_causal_lm(source: str | Path) -> nn.Module:
    """Returns a causal LM whose blocks have no weights yet.

    All that is outside the blocks is loaded; they are on the ``meta`` device,
    for a :class:`mmprune.pruners.stores.StreamedStore`.

    Args:
        source: Folder with safetensors.

    Raises:
        ValueError: If it has none, or tensors under unknown names.
    """
    from accelerate import init_empty_weights

    check_folder(source)
    files = weight_files(source)
    with init_empty_weights(include_buffers=False):
        net = _create(str(source), 'auto', {})
    blocks = find_blocks(net)
    outside = {
        name: file
        for name, file in file_names(net, files).items()
        if not any(name.startswith(f'{path}.') for path in blocks)
    }
    net.load_state_dict(
        read_tensors(files, outside), strict=False, assign=True
    )
    net.tie_weights()
    net.__class__ = causal_lm_class(type(net))
    net.adopt(None)
    return net.eval()
