"""Accuracy back without losing the zeros: training a pruned language model."""

import copy
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoConfig

from ...atomic_file import write_whole
from ...checkpoints.packed import pack_folder
from ...checks import check_choice
from ...families.causal_lm import check_tokens
from ...groups import named_tensors
from ...metrics.perplexity import perplexity
from ...models.lora import is_adapter, load_adapter, merge_adapters
from ...models.sharded import FullyShardedModel
from ...registry import DATASETS, MODELS
from ...shards import count_zeros
from ...sparsifying.holding import model_in_training, sparse_weights
from .run import SHARDED, runner_for

METHODS = ('lora', 'masked_lora', 'dense')
RESULTS = 'recovery.json'
MERGED, PACKED = 'merged', 'packed'
# The module that returns the logits, where it is not called lm_head.
_HEADS = dict(gpt_neox='embed_out')
# Tokenizers, settings of generation, notes on pruning.
_BESIDE = ('.json', '.txt', '.model', '.jinja', '.md', '.csv')


@dataclass(frozen=True)
class Recovery:
    """How a pruned language model is trained.

    Args:
        method: ``lora`` for adapters that stay apart, ``masked_lora`` for
            adapters under the mask of the weights, which are merged without
            changing a zero, ``dense`` for all weights that are left.
        r: Rank of the adapters.
        alpha: Numerator of their scale.
        dropout: Of their input.
        targets: Last names of the layers that get one, or ``all``; by default
            queries and values.
        teacher: Folder of the dense model to learn from too.
        distill: Weight of that.
        temperature: Of that.
        shard: Whether parameters are split over the ranks (FSDP2).
    """

    method: str = 'lora'
    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: str | tuple[str, ...] = ()
    teacher: str | None = None
    distill: float = 1.0
    temperature: float = 2.0
    shard: bool = False

    def __post_init__(self) -> None:
        check_choice('the method of recovery', self.method, METHODS)
        if self.r < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                'adapters have a rank of at least 1 and a dropout in [0, 1), '
                f'found {self.r} and {self.dropout:g}'
            )


def recovery_config(cfg: Config, how: Recovery) -> Config:
    """Returns the config that trains a pruned language model.

    Args:
        cfg: With the folder of the model as ``model.pretrained``, training
            data and schedule.
        how: The method.
    """
    cfg = copy.deepcopy(cfg)
    base = cfg.model.to_dict()
    hooks = [h for h in cfg.get('custom_hooks', []) if not _is_ours(h)]
    if how.method == 'dense':
        # Steps of a fine-tuning are lost in half precision.
        model = {**base, 'dtype': 'float32'}
        hooks.append(dict(type='mmprune.MaskHook'))
    else:
        model = dict(
            type='mmprune.LoraModel',
            model=base,
            r=how.r,
            alpha=how.alpha,
            dropout=how.dropout,
            targets=how.targets,
            under_mask=how.method == 'masked_lora',
        )
        hooks.append(dict(type='mmprune.LoraHook', base=base['pretrained']))
    if how.teacher is not None:
        term = dict(
            source=_head(base['pretrained']),
            loss='kl',
            weight=how.distill,
            temperature=how.temperature,
        )
        model = dict(
            type='mmprune.DistilledModel',
            student=model,
            teacher={**base, 'pretrained': how.teacher},
            terms=[term],
        )
    cfg.model, cfg.custom_hooks = model, hooks
    if how.shard:
        cfg.model_wrapper_cfg = dict(type=SHARDED)
    return cfg


def recover(
    cfg: Config,
    how: Recovery,
    out: Path,
    *,
    evaluation: dict | None = None,
    eval_batch: int = 1,
    merge: bool = False,
    pack: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains a pruned model, writes it and returns what came of it.

    Args:
        cfg: What :func:`recovery_config` was given; its ``work_dir`` takes
            checkpoints and logs, from which ``resume`` goes on.
        how: The method.
        out: Takes ``recovery.json`` and the adapters, or, after ``dense``,
            the model folder.
        evaluation: Config of the windows that perplexity is measured on.
        eval_batch: Windows at a time.
        merge: Whether to write the merged model to ``out/merged``, too.
        pack: Whether to write the sparse files to ``out/packed``, too.
        log: Called with lines, on rank 0.

    Returns:
        Name -> number: perplexities and sparsities, tokens, seconds.

    Raises:
        ValueError: If model, data or method do not go together.
    """
    from mmengine.dist import get_world_size, is_main_process

    init_default_scope(cfg.get('default_scope', 'mmengine'))
    source = Path(cfg.model.pretrained)
    windows = DATASETS.build(dict(evaluation)) if evaluation else None
    measure = partial(
        _measured, windows=windows, batch_size=eval_batch, log=log
    )
    runner = runner_for(recovery_config(cfg, how))
    model = model_in_training(runner)
    names = _sparse(model)
    if not names:
        raise ValueError(
            f'{source} has no matrix with zeros to keep; prune it first'
        )
    _check_windows(model, [runner.train_dataloader.dataset, windows])
    found: dict[str, Any] = dict(method=how.method, teacher=how.teacher)
    found |= measure(model, names, 'pruned')
    start = time.time()
    runner.train()
    found['seconds'] = round(time.time() - start, 1)
    found['tokens'] = _tokens(cfg, len(runner.train_dataloader)) * (
        get_world_size()
    )
    found |= measure(model, names, 'recovered')
    split = isinstance(runner.model, FullyShardedModel)
    weights = runner.model.gathered() if split else None
    if not is_main_process():
        return found
    folder = out
    if how.method == 'dense':
        _write_model(model, source, out, weights)
    else:
        _copy_adapter(Path(cfg.work_dir) / 'adapter', out)
    if merge:
        if how.method == 'lora':
            log(
                'adapters that were trained apart leave no zeros when they '
                'are merged; --method masked_lora keeps them'
            )
        folder = out / MERGED
        merged = _merged(cfg, out)
        found |= measure(merged, names, 'merged')
        _write_model(merged, source, folder)
    if pack:
        sizes = pack_folder(folder, out / PACKED)
        found['packed_fraction'] = sizes['packed'] / sizes['dense']
        log(f'{out / PACKED}: {found["packed_fraction"]:.3f} of the size')
    write_whole(out / RESULTS, json.dumps(found, indent=1).encode())
    return found


def evaluate_model(
    cfg: Config,
    evaluation: dict,
    batch_size: int = 1,
    log: Callable[[str], None] = print,
) -> dict[str, float]:
    """Returns sparsity and perplexity of the model of a config.

    Args:
        cfg: With the folder of the model as ``model.pretrained``.
        evaluation: Config of the windows.
        batch_size: Windows at a time.
        log: Called with a line.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = MODELS.build(cfg.model.to_dict()).to(get_device())
    windows = DATASETS.build(dict(evaluation))
    _check_windows(model, [windows])
    names = _sparse(model)
    return _measured(model, names, 'model', windows, batch_size, log)


def _measured(
    model: nn.Module,
    names: list[str],
    when: str,
    windows: Dataset | None,
    batch_size: int,
    log: Callable[[str], None],
) -> dict[str, float]:
    """Sparsity and perplexity of a model, logged."""
    tensors = named_tensors(model)
    zeros, total = count_zeros(tensors[_there(n, tensors)] for n in names)
    found = {f'sparsity_{when}': zeros / max(1, total)}
    text = f'{when}: {found[f"sparsity_{when}"]:.4%} of {total} weights zero'
    if windows is not None:
        value = perplexity(model, windows, batch_size)
        found[f'perplexity_{when}'] = value
        text += f', perplexity {value:.4f}'
    log(text)
    return found


def _check_windows(model: nn.Module, sets: list[Dataset | None]) -> None:
    """Refuses windows that the model cannot read."""
    longest = getattr(model.config, 'max_position_embeddings', None)
    for windows in filter(None, sets):
        check_tokens(model, windows.largest, windows.source)
        if longest is not None and windows.seqlen > longest:
            raise ValueError(
                f'windows of {windows.seqlen} tokens are longer than the '
                f'{longest} that the model was made for; lower the length'
            )


def _sparse(model: nn.Module) -> list[str]:
    """The pruned matrices, by the names that they have without adapters."""
    return [
        name.replace('.base_layer', '')
        for name in sparse_weights(model)
        if not is_adapter(name)
    ]


def _there(name: str, tensors: dict) -> str:
    path, _, leaf = name.rpartition('.')
    below = f'{path}.base_layer.{leaf}'
    return below if below in tensors else name


def _tokens(cfg: Config, iterations: int) -> int:
    """Tokens that a rank is trained on."""
    data = cfg.train_dataloader
    windows = iterations * data.get('batch_size', 1)
    return cfg.train_cfg.max_epochs * windows * data.dataset.seqlen


def _merged(cfg: Config, adapter: Path) -> nn.Module:
    """Returns the pruned model with the adapters of a folder merged in."""
    model = MODELS.build(cfg.model.to_dict()).to(get_device())
    load_adapter(model, adapter)
    merge_adapters(model)
    return model


def _copy_adapter(folder: Path, out: Path) -> None:
    for path in folder.iterdir():
        write_whole(out / path.name, path.read_bytes())


def _write_model(
    model: nn.Module, source: Path, out: Path, weights: dict | None = None
) -> None:
    """Writes a model folder in the dtype of the pruned one, file by file.

    Args:
        model: What was trained.
        source: Folder of the pruned model; its tokenizer comes along.
        out: Where.
        weights: Whole ones of a sharded model.
    """
    dtype = AutoConfig.from_pretrained(source).dtype or torch.float32
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in (weights or model.state_dict()).items()
    }
    model.config.dtype = dtype
    beside = out / '.writing'
    model.save_pretrained(beside, state_dict=state)
    for path in sorted(source.iterdir()) if source.is_dir() else ():
        wanted = path.suffix in _BESIDE and 'safetensors' not in path.name
        if path.is_file() and wanted and not (beside / path.name).exists():
            shutil.copyfile(path, beside / path.name)
    for path in beside.iterdir():
        os.replace(path, out / path.name)
    beside.rmdir()


def _head(folder: str) -> str:
    path = Path(folder) / 'config.json'
    kind = ''
    if path.is_file():
        kind = json.loads(path.read_text()).get('model_type', '')
    return _HEADS.get(kind, 'lm_head')


def _is_ours(hook: dict) -> bool:
    return hook['type'] in ('mmprune.MaskHook', 'mmprune.LoraHook')
