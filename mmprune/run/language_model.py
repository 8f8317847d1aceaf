"""Prunes the folder of a language model into another folder."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope
from torch import nn
from torch.utils.data import Dataset

from ..blocks import catch_inputs, find_blocks, finish
from ..checkpoints.huggingface import check_folder
from ..checkpoints.model_folder import (
    save_model_folder,
    save_streamed_folder,
    sparsity_rows,
)
from ..families.causal_lm import check_tokens
from ..memory import peak_bytes, reset_peak
from ..metrics.perplexity import perplexity
from ..models.huggingface_causal_lm import (
    build_huggingface_causal_lm,
    build_streamed_causal_lm,
)
from ..plan import PruningPlan
from ..pruners import LayerwisePruner
from ..pruners.stores import Kept, MemoryStore, StreamedStore
from ..registry import DATASETS
from . import language_report

_PROMPT, _REPLY = 16, 48


@dataclass
class Stages:
    """Seconds and peak memory of what was done, in order.

    Args:
        device: Where blocks are.
    """

    device: torch.device
    rows: list[dict] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures what is done while it lasts."""
        cuda = self.device.type == 'cuda'
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        reset_peak()
        start = time.perf_counter()
        yield
        row = dict(stage=name, seconds=time.perf_counter() - start)
        row['host_peak_gb'] = peak_bytes() / 1024**3
        if cuda:
            peak = torch.cuda.max_memory_allocated(self.device)
            row['device_peak_gb'] = peak / 1024**3
        self.rows.append(row)


def prune_model_folder(
    source: str,
    pruner: LayerwisePruner,
    calibration: Mapping,
    *,
    model_out: Path | None = None,
    report_out: Path | None = None,
    evaluation: Mapping | None = None,
    method: str = '',
    batch_size: int = 1,
    dtype: str = 'auto',
    low_memory: bool = False,
    trust: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Prunes a model, measures it before and after, and writes it.

    A pass that was killed goes on at its block if it is started again with
    the same arguments: finished blocks are kept beside ``model_out``.

    Args:
        source: Folder or hub name of the dense model.
        pruner: How to prune.
        calibration: Config of the windows that it sees.
        model_out: Where the model goes; nowhere if left out.
        report_out: Where report.json and report.html go.
        evaluation: Config of the windows that perplexity is measured on.
        method: How the method is called in what is written.
        batch_size: Windows that are run together.
        dtype: As of ``mmprune.HuggingFaceCausalLM``.
        low_memory: Whether blocks stream from the files and into them.
        trust: Whether a folder that has nothing but pickles is loaded.
        log: Called with lines.

    Returns:
        What was measured: perplexities, sparsity, stages, samples.

    Raises:
        ValueError: If model, text or tokenizer do not go together; nothing
            was written then.
    """
    init_default_scope('mmengine')
    check_folder(source, trust)
    stages = Stages(torch.device(pruner.device))
    with stages.stage('loading'):
        windows = DATASETS.build(dict(calibration)) if pruner.needs else None
        test = DATASETS.build(dict(evaluation)) if evaluation else None
        job = _job(source, dtype, low_memory, trust, model_out, pruner.device)
        _check_windows(job.model, windows, test)
    tokenizer = _tokenizer(source, calibration, evaluation)
    facts = dict(base_model=source, method=method)
    if windows is not None:
        facts['calibration'] = {**windows.metainfo, 'windows': len(windows)}
    models, samples = {}, {}
    with stages.stage('dense model'):
        _measure(job, test, 'dense', models, samples, batch_size, log)
    with stages.stage('pruning'):
        plan = job.prune(pruner, _batches(windows, batch_size), log)
    with stages.stage('pruned model'):
        _measure(job, test, 'pruned', models, samples, batch_size, log)
    if test is not None:
        facts['perplexity'] = perplexity_facts(test, models)
    rows = sparsity_rows(plan)
    zeros, total = (sum(r[k] for r in rows) for k in ('zeros', 'total'))
    log(f'{zeros} of {total} weights are zero: {zeros / total:.4%}')
    with stages.stage('writing'):
        if model_out is not None:
            job.write(plan, model_out, facts, tokenizer)
    facts |= dict(stages=stages.rows, reached_sparsity=zeros / total)
    if report_out is not None:
        language_report.write(
            report_out, facts, plan, rows, samples, job.sizes(), tokenizer
        )
    return {**facts, 'samples': samples}


def perplexity_facts(windows: Dataset, models: Mapping[str, float]) -> dict:
    """Returns perplexities with all that they depend on."""
    return dict(
        models=dict(models),
        windows=len(windows),
        context=windows.metainfo['seqlen'],
        bos=windows.metainfo['bos'],
        data=windows.metainfo['source'],
    )


@dataclass
class _Job:
    """A model, and where its blocks are.

    Args:
        model: The model; if streamed, its blocks are empty.
        source: Its folder or hub name.
        store: Where its blocks are.
        kept: Finished blocks on disk.
        streamed: Whether blocks come from files.
    """

    model: nn.Module
    source: str
    store: Any
    kept: Kept | None
    streamed: bool

    def prune(
        self,
        pruner: LayerwisePruner,
        batches: list[dict],
        log: Callable[[str], None],
    ) -> PruningPlan:
        """Prunes the model in place."""
        return pruner(self.model, batches, _run, self.store, log)

    def predictions(self, batches: list[dict]) -> Iterator[list]:
        """Yields the predictions of each batch."""
        if not self.streamed and self.store.device.type == 'cpu':
            for batch in batches:
                with torch.no_grad():
                    yield _run(self.model, batch)
            return
        # With one block at a time on the device, as in pruning.
        paths, device = find_blocks(self.model), self.store.device
        self.store.open(0)
        carried = catch_inputs(self.model, paths, batches, _run, device)
        self.store.close(0)
        for number in range(len(paths)):
            block = self.store.open(number)
            carried.carry(block, number, device)
            self.store.close(number)
        yield from finish(self.model, paths, carried, batches, _run)

    def sizes(self) -> dict[str, int]:
        """Returns parameters of the model."""
        return dict(params=sum(p.numel() for p in self.model.parameters()))

    def write(
        self,
        plan: PruningPlan,
        folder: Path,
        facts: dict,
        tokenizer: str | Path | None,
    ) -> None:
        """Writes the folder, and forgets the blocks that were kept."""
        if self.streamed:
            blocks = find_blocks(self.model)
            files = [self.kept.file(number) for number in range(len(blocks))]
            save_streamed_folder(
                files, Path(self.source), plan, folder, facts, tokenizer
            )
        else:
            save_model_folder(self.model, plan, folder, facts, tokenizer)
        if self.kept is not None:
            self.kept.remove()


def _job(
    source: str,
    dtype: str,
    low_memory: bool,
    trust: bool,
    out: Path | None,
    device: str,
) -> _Job:
    kept = None
    if out is not None:
        kept = Kept(out.with_name(f'{out.name}.blocks'))
    if not low_memory:
        model = build_huggingface_causal_lm(
            pretrained=source, dtype=dtype, trust=trust
        )
        blocks = find_blocks(model)
        store: Any = MemoryStore(model, blocks, device, kept)
        return _Job(model, source, store, kept, False)
    if kept is None or dtype != 'auto' or not Path(source).is_dir():
        raise ValueError(
            'low memory streams from a folder into a folder, in the dtype of '
            'the files; name both, and no other dtype'
        )
    model = build_streamed_causal_lm(source)
    blocks = find_blocks(model)
    store = StreamedStore(model, blocks, source, kept, device)
    return _Job(model, source, store, kept, True)


def _run(model: nn.Module, batch: dict) -> list:
    """Returns the predictions of a batch."""
    ids = batch['input_ids'].to(model.get_input_embeddings().weight.device)
    return model(input_ids=ids, mode='predict')


def _batches(windows: Dataset | None, size: int) -> list[dict]:
    if windows is None:
        return []
    rows = torch.stack([windows[i]['input_ids'] for i in range(len(windows))])
    return [dict(input_ids=part) for part in rows.split(size)]


def _check_windows(
    model: nn.Module, windows: Dataset | None, test: Dataset | None
) -> None:
    """Refuses tokens that the model lacks, and texts that are too long."""
    for data in (windows, test):
        if data is None:
            continue
        source, length = data.metainfo['source'], data.metainfo['seqlen']
        check_tokens(model, data.largest, source)
        most = getattr(model.config, 'max_position_embeddings', None)
        if most and length > most:
            raise ValueError(
                f'windows of {length} tokens were asked for, and the model '
                f'reads {most}; lower the sequence length'
            )


def _measure(
    job: _Job,
    test: Dataset | None,
    name: str,
    models: dict,
    samples: dict,
    batch_size: int,
    log: Callable[[str], None],
) -> None:
    """Adds perplexity and samples of the model as it is now."""
    if test is None:
        return
    total, count = 0.0, 0
    for found in job.predictions(_batches(test, batch_size)):
        total += math.fsum(each.loss_sum for each in found)
        count += sum(each.num_tokens for each in found)
    models[name] = math.exp(min(total / count, 700.0))
    about = test.metainfo
    log(
        f'{name}: perplexity {models[name]:.4f} ({len(test)} windows of '
        f'{about["seqlen"]} tokens of {about["source"]})'
    )
    if not job.streamed and job.store.device.type == 'cpu':
        samples[name] = replies(job.model, test)


def replies(model: nn.Module, windows: Dataset, count: int = 2) -> list:
    """Returns beginnings of windows and how a model goes on, as tokens.

    Args:
        model: The model.
        windows: Where the beginnings come from.
        count: How many.
    """
    found = []
    most = windows.metainfo['seqlen'] // 2
    for number in range(min(count, len(windows))):
        ids = windows[number]['input_ids'][: min(_PROMPT, most)]
        with torch.no_grad():
            out = model.generate(
                ids[None].to(model.device),
                attention_mask=torch.ones_like(ids)[None].to(model.device),
                max_new_tokens=min(_REPLY, most),
                do_sample=False,
                pad_token_id=0,
            )
        found.append(
            dict(prompt=ids.tolist(), reply=out[0, len(ids) :].tolist())
        )
    return found


def _tokenizer(source: str, *data: Mapping | None) -> str | Path | None:
    """Where the tokenizer is that goes along with the model."""
    for each in data:
        named = (each or {}).get('tokenizer')
        if named and Path(named).exists():
            return named
    return source if Path(source).is_dir() else None


def perplexities(
    folders: Mapping[str, str],
    evaluation: Mapping,
    *,
    adapters: str | None = None,
    batch_size: int = 1,
    device: str = 'cpu',
    trust: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measures models one after the other.

    Args:
        folders: Name -> folder or hub name.
        evaluation: Config of the windows.
        adapters: LoRA folder that is put on the last model, which is then
            measured again.
        batch_size: Windows at a time.
        device: Where the models go.
        trust: Whether a folder that has nothing but pickles is loaded.
        log: Called with lines.

    Returns:
        As :func:`perplexity_facts`.

    Raises:
        ValueError: If models, text, tokenizer and adapters do not go
            together.
    """
    from ..models.lora import load_adapter

    init_default_scope('mmengine')
    for source in folders.values():
        check_folder(source, trust)
    windows = DATASETS.build(dict(evaluation))
    found: dict[str, float] = {}
    log(
        f'{len(windows)} windows of {windows.metainfo["seqlen"]} tokens, '
        f'{"with" if windows.metainfo["bos"] else "without"} BOS, of '
        f'{windows.metainfo["source"]}'
    )
    for number, (name, source) in enumerate(folders.items()):
        model = build_huggingface_causal_lm(pretrained=source, trust=trust)
        _check_windows(model, None, windows)
        found[name] = perplexity(model.to(device), windows, batch_size)
        log(f'{name}: perplexity {found[name]:.4f}')
        if adapters is not None and number == len(folders) - 1:
            load_adapter(model, adapters)
            found[f'{name} with adapters'] = perplexity(
                model.to(device), windows, batch_size
            )
            last = list(found)[-1]
            log(f'{last}: perplexity {found[last]:.4f}')
    return perplexity_facts(windows, found)
