"""Low-rank adapters on a frozen, pruned model, also under its mask."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..atomic_file import write_whole
from ..layers import is_conv1d
from ..registry import MODELS
from ..shards import gathered

# Written beside PEFT's own files: what they cannot say.
NOTE = 'mmprune_adapter.json'
WEIGHTS = 'adapter_model.safetensors'
CONFIG = 'adapter_config.json'
# Query and value projections, as the families call them; the later ones
# pack queries, keys and values into one matrix.
_TARGETS = (
    ('q_proj', 'v_proj'),
    ('q_lin', 'v_lin'),
    ('query', 'value'),
    ('query_key_value',),
    ('c_attn',),
    ('qkv',),
)
_SAMPLES = 16


@MODELS.register_module(name='LoraModel')
def build_lora_model(
    model: dict,
    r: int = 8,
    alpha: int = 16,
    dropout: float = 0.05,
    targets: str | Sequence[str] = (),
    under_mask: bool = False,
    adapter: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Returns a frozen model with adapters that train; there is no wrapper.

    A linear layer with weight W computes :math:`W x + s B A x` with
    :math:`A` ``[r, in]``, :math:`B` ``[out, r]`` and ``s = alpha / r``; Hu et
    al., "LoRA", ICLR 2022. The zeros of W stay, but a merged
    :math:`W + s B A` has none. Under the mask :math:`M = (W \\ne 0)` it
    computes :math:`(W + M \\odot s B A) x` instead, so that merging changes
    neither a zero nor an output; as in Zimmer et al., "PERP", 2023.

    Args:
        model: Config of the pruned model with its weights.
        r: Rank.
        alpha: Numerator of the scale.
        dropout: Of the input of the adapters.
        targets: Last names of the linear layers that get one, or ``all``;
            by default queries and values.
        under_mask: Whether the product is masked as the weight is.
        adapter: Folder of a saved adapter to go on from; its rank, targets
            and mask are those of the folder.
        kwargs: Further arguments of the model, as ``data_preprocessor``.

    Raises:
        ValueError: If the model has no such layers, or the adapter belongs
            to another one.
    """
    net = MODELS.build({**model, **kwargs})
    if adapter is not None:
        load_adapter(net, adapter, train=True)
    else:
        add_adapters(net, r, alpha, dropout, targets, under_mask)
    return net


def add_adapters(
    model: nn.Module,
    r: int = 8,
    alpha: int = 16,
    dropout: float = 0.05,
    targets: str | Sequence[str] = (),
    under_mask: bool = False,
) -> None:
    """Freezes a model and puts adapters on its linear layers, in place.

    Args are those of :func:`build_lora_model`.

    Raises:
        ValueError: If PEFT is absent or the model has no such layers.
    """
    peft = _peft()
    config = peft.LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted(_found_targets(model, targets)),
        bias='none',
        task_type='CAUSAL_LM',
        fan_in_fan_out=_is_transposed(model, targets),
    )
    _inject(model, config, under_mask)


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    base: str = '',
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes the adapters alone, as PEFT lays them out.

    Beside its two files lies what tells a base from another, and whether
    the adapters were trained under the mask.

    Args:
        model: From :func:`build_lora_model`.
        folder: Where.
        base: Folder or name of the model below, for the reader.
        state: What :func:`adapter_state` returned, if it was called.
    """
    from safetensors.torch import save

    folder = Path(folder)
    state = adapter_state(model) if state is None else state
    weights = {
        'base_model.model.' + name.replace('.default', ''): value.cpu()
        for name, value in state.items()
    }
    config = model.peft_config['default']
    entries = {**config.to_dict(), 'base_model_name_or_path': base or None}
    entries['inference_mode'] = True
    note = dict(
        under_mask=is_under_mask(model), base=model.lora_base, version=1
    )
    write_whole(folder / WEIGHTS, save(weights, metadata={'format': 'pt'}))
    write_whole(folder / CONFIG, _json(entries))
    write_whole(folder / NOTE, _json(note))


def load_adapter(
    model: nn.Module, folder: str | Path, train: bool = False
) -> None:
    """Puts the adapters of a folder on a model, in place.

    Args:
        model: The model that they were trained on, without adapters.
        folder: From :func:`save_adapter`, or any LoRA folder of PEFT.
        train: Whether they go on training; else they have no gradient.

    Raises:
        ValueError: If the folder holds no LoRA adapter, or one that belongs
            to another model.
    """
    from safetensors.torch import load_file

    peft = _peft()
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(
                f'{folder} holds no adapter: it has no {name}; give the '
                'folder that a LoRA training wrote'
            )
    entries = json.loads((folder / CONFIG).read_text())
    if entries.get('peft_type') != 'LORA':
        raise ValueError(
            f'{folder} holds an adapter of type {entries.get("peft_type")!r}; '
            'only LORA can be read'
        )
    note = {}
    if (folder / NOTE).is_file():
        note = json.loads((folder / NOTE).read_text())
        _check_base(model, note['base'], folder)
    weights = {
        re.sub(
            r'(lora_\w+)\.weight$', r'\1.default.weight', name
        ).removeprefix('base_model.model.'): tensor
        for name, tensor in load_file(folder / WEIGHTS).items()
    }
    _check_places(model, weights, folder)
    known = peft.LoraConfig.__dataclass_fields__.keys()
    config = peft.LoraConfig(
        **{k: v for k, v in entries.items() if k in known}
    )
    config.inference_mode = not train
    _inject(model, config, note.get('under_mask', False))
    wrong = _difference(adapter_state(model), weights)
    if wrong:
        raise ValueError(
            f'the adapter in {folder} belongs to another base: {wrong}'
        )
    model.load_state_dict(weights, strict=False)


def merge_adapters(model: nn.Module) -> None:
    """Adds the adapters to the weights below and removes them, in place.

    Those that were trained under the mask leave every zero and every output
    as it is; of others no zero is left.
    """
    for path, layer in list(_lora_layers(model)):
        layer.merge()
        parent, _, leaf = path.rpartition('.')
        model.get_submodule(parent)._modules[leaf] = layer.get_base_layer()
    del model.peft_config, model.lora_base


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of the adapters alone, by name.

    Where they are sharded, all ranks have to call.
    """
    return {
        name: gathered(param)
        for name, param in model.named_parameters()
        if is_adapter(name)
    }


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return '.lora_' in name


def is_under_mask(model: nn.Module) -> bool:
    """Whether a model's adapters are masked as its weights are."""
    layers = [layer for _, layer in _lora_layers(model)]
    return bool(layers) and isinstance(layers[0], _masked_linear())


def _inject(model: nn.Module, config: Any, under_mask: bool) -> None:
    from peft.tuners.tuners_utils import cast_adapter_dtype

    peft = _peft()
    model.lora_base = _fingerprint(model)
    if under_mask:
        kinds = {type(m) for m in model.modules() if _is_linear(m)}
        masked = _masked_linear()
        config._register_custom_module(dict.fromkeys(kinds, masked))
    peft.inject_adapter_in_model(config, model)
    # Half precision would lose most of their steps.
    cast_adapter_dtype(model, 'default', autocast_adapter_dtype=True)
    model.peft_config = {'default': config}
    for name, param in model.named_parameters():
        param.requires_grad_(is_adapter(name) and not config.inference_mode)


@functools.cache
def _masked_linear() -> type[nn.Module]:
    """Returns PEFT's LoRA layer with its product under the weight's mask.

    Merging is PEFT's own: it asks for the same product.
    """
    from peft.tuners.lora import Linear

    class MaskedLoraLinear(Linear):
        """W + M * (s * B A); M is where W is not zero."""

        def get_delta_weight(self, adapter: str) -> Tensor:
            delta = super().get_delta_weight(adapter)
            # The base is frozen, so its zeros are the mask at any time.
            return delta.masked_fill(self.get_base_layer().weight == 0, 0)

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self.disable_adapters or self.merged:
                return super().forward(x, *args, **kwargs)
            base, (name,) = self.get_base_layer(), self.active_adapters
            delta = self.get_delta_weight(name)
            dropout = self.lora_dropout[name]
            if self.training and not isinstance(dropout, nn.Identity):
                changed = dropout(x).to(delta.dtype)
                added = F.linear(changed, self._by_rows(delta))
                return base(x) + added.to(x.dtype)
            # As the merged layer computes it, to the last bit.
            weight = (base.weight + delta).to(base.weight.dtype)
            return F.linear(x, self._by_rows(weight), base.bias)

        def _by_rows(self, weight: Tensor) -> Tensor:
            return weight.T if self.fan_in_fan_out else weight

    return MaskedLoraLinear


def _lora_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    from peft.tuners.lora import LoraLayer

    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, LoraLayer)
    ]


def _linear_names(model: nn.Module) -> set[str]:
    """Last names of the linear layers inside the blocks of a model."""
    return {
        path.rpartition('.')[2]
        for path, module in model.named_modules()
        if _is_linear(module)
        and any(part.isdigit() for part in path.split('.'))
    }


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(type(module))


def _found_targets(model: nn.Module, targets: str | Sequence[str]) -> set[str]:
    names = _linear_names(model)
    if targets in ('all', ['all'], ('all',)):
        return names
    if targets:
        asked = {targets} if isinstance(targets, str) else set(targets)
        missing = sorted(asked - names)
        if missing:
            raise ValueError(
                f'the model has no linear layer {missing[0]!r} to adapt; its '
                f'layers are {", ".join(sorted(names))}'
            )
        return asked
    for default in _TARGETS:
        if names >= set(default):
            return set(default)
    raise ValueError(
        'it is not known which layers of the model are queries and values; '
        f'name those to adapt, of {", ".join(sorted(names))}'
    )


def _is_transposed(model: nn.Module, targets: str | Sequence[str]) -> bool:
    names = _found_targets(model, targets)
    return any(
        is_conv1d(type(module))
        for path, module in model.named_modules()
        if path.rpartition('.')[2] in names
    )


def _fingerprint(model: nn.Module) -> dict[str, list[float]]:
    """Returns some values of every matrix of the base, by name."""
    found = {}
    for name, tensor in _base_matrices(model).items():
        step = max(1, tensor.numel() // _SAMPLES)
        values = tensor.detach().flatten()[::step][:_SAMPLES]
        found[name] = [round(v, 9) for v in values.float().tolist()]
    return found


def _base_matrices(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.replace('.base_layer', ''): param
        for name, param in model.named_parameters()
        if param.ndim > 1 and not is_adapter(name)
    }


def _check_base(
    model: nn.Module, saved: Mapping[str, list[float]], folder: Path
) -> None:
    """Refuses a model whose weights are not those of the adapter's base.

    A file in half precision may differ from one in full, by half a percent.
    """
    mine = _fingerprint(model)
    for name in sorted(saved.keys() | mine.keys()):
        one, other = (torch.tensor(f.get(name, [])) for f in (mine, saved))
        same = one.shape == other.shape
        if not (same and torch.allclose(one, other, rtol=1e-2, atol=1e-6)):
            raise ValueError(
                f'the adapter in {folder} belongs to another base: '
                f'{name} of the model differs from that which it was trained '
                'on; give the model folder of its training'
            )


def _check_places(
    model: nn.Module, weights: Mapping[str, Tensor], folder: Path
) -> None:
    paths = {name.partition('.lora_')[0] for name in weights}
    missing = sorted(paths - {path for path, _ in model.named_modules()})
    if missing or not paths:
        raise ValueError(
            f'the adapter in {folder} belongs to another base: the model has '
            f'no {missing[0] if missing else "layer that it adapts"}'
        )


def _difference(mine: Mapping, theirs: Mapping) -> str:
    odd = sorted(mine.keys() ^ theirs.keys())
    if odd:
        return f'{odd[0]} is in one of them alone'
    for name, tensor in mine.items():
        if tensor.shape != theirs[name].shape:
            return (
                f'{name} has shape {list(theirs[name].shape)}, the model '
                f'needs {list(tensor.shape)}'
            )
    return ''


def _json(entries: Mapping) -> bytes:
    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, set) else str(value)

    text = json.dumps(entries, indent=1, sort_keys=True, default=plain)
    return text.encode() + b'\n'


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError(
            "LoRA needs the package peft; pip install 'mmprune[llm]'"
        ) from error
    return peft
