"""Quantizes a checkpoint: what ``tools/quantize.py`` does."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from ..atomic_file import save_json, write_whole
from ..checkpoints.huggingface import with_own_config
from ..checkpoints.loading import load_checkpoint
from ..checkpoints.writing import (
    name_imports,
    quantized_model_config,
)
from ..cost import cost_row, measure_latencies
from ..family import build_family, use_checkpoint
from ..models import loaded_model
from ..pruners.verify import largest_difference, tensors_of
from ..quantization import Choice, Scheme, choose_layers, packed_copy
from ..quantization.choice import OUTPUTS
from ..quantization.models import float_config
from ..quantization.packing import save_quantized, sizes
from ..version import __version__
from . import report_html, training
from .report import summary_table

NAME = 'quantized.pth'


def quantize(
    cfg: Config,
    checkpoint: str | Path,
    folder: Path,
    *,
    method: str = 'rtn',
    scheme: Scheme | None = None,
    keep: Sequence[str] = (),
    latency_runs: int = 5,
    evaluate: bool = False,
    trust: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Writes a checkpoint with four-bit weights, and a report about it.

    Args:
        cfg: Config of the model, dense or pruned, or of a training with
            rounded weights, whose scheme is then taken.
        checkpoint: Its weights, dense or pruned.
        folder: Where ``quantized.pth``, its config and the report go.
        method: ``rtn`` or ``gptq``.
        scheme: How weights are stored.
        keep: Regular expressions on paths of layers that stay in float.
        latency_runs: Timed runs of each model, 0 for none.
        evaluate: Whether both models are evaluated.
        trust: Whether to unpickle what the safe loader refuses.
        log: Prints a line.

    Returns:
        The report.

    Raises:
        ValueError: If the checkpoint does not fit or is quantized already.
    """
    use_checkpoint(cfg, checkpoint)
    loaded = load_checkpoint(checkpoint, trust)
    meta = loaded.get('meta') or {}
    if 'quantization' in meta:
        raise ValueError(
            f'{checkpoint} is quantized already; give the float checkpoint'
        )
    cfg, trained_scheme, trained_keep = float_config(cfg)
    scheme = scheme or trained_scheme or Scheme()
    # mmap'd weights must not be on the disk that is written to.
    model = loaded_model(cfg, loaded, checkpoint)
    # A statement: `eval` of mmdet's distilled detectors returns nothing.
    model.eval()
    family = build_family(cfg)
    choice = choose_layers(
        model, family.forward, (*(trained_keep or (OUTPUTS,)), *keep)
    )
    log(
        f'{len(choice.layers)} linear layers get 4 bits in groups of '
        f'{scheme.group_size}, {len(choice.left)} matrices stay in float'
    )
    data: dict[str, Any] = {}
    if method == 'gptq':
        data = dict(batches=family.batches(), run=family.loss)
    packed = packed_copy(model, choice, scheme, method, **data)
    folder.mkdir(parents=True, exist_ok=True)
    save_quantized(packed, folder / NAME, {**meta, 'cfg': cfg.pretty_text})
    text = quantized_config(cfg, NAME)
    write_whole((folder / NAME).with_suffix('.py'), text.encode())
    report = _report(cfg, model, packed, choice, family, latency_runs)
    report |= dict(checkpoint=str(checkpoint), method=method)
    if evaluate:
        report['metrics'] = {
            'dense': training.evaluate(
                cfg, Path(checkpoint), folder / 'evaluation' / 'float', 'none'
            ),
            'quantized': training.evaluate(
                cfg, folder / NAME, folder / 'evaluation' / '4bit', 'none'
            ),
        }
    save_json(report, folder / 'report.json')
    report_html.write(folder)
    log(summary_table(report['models']))
    log(report['notes'])
    return report


def quantized_config(cfg: Config, checkpoint: str) -> str:
    """Returns the text of a config that a stock Runner builds from.

    Args:
        cfg: Config of the float model.
        checkpoint: File name of the quantized checkpoint beside it.
    """
    cfg = copy.deepcopy(cfg)
    beside = '{{ fileDirname }}/' + checkpoint
    model = with_own_config(cfg.model.to_dict())
    if model['type'] == 'mmprune.PrunedModel':
        model = {**model, 'plan': beside}
    cfg.model = quantized_model_config(model, beside)
    cfg.load_from = beside
    # It is there to be run; masks and exports belong to the training.
    cfg.custom_hooks = [dict(type='mmprune.PlanHook')]
    name_imports(cfg)
    cfg.pop('pruning', None)
    return cfg.pretty_text


def _report(
    cfg: Config,
    model: nn.Module,
    packed: nn.Module,
    choice: Choice,
    family: Any,
    latency_runs: int,
) -> dict[str, Any]:
    run = family.single_frame
    models = dict(dense=model, quantized=packed)
    latencies = measure_latencies(
        {name: partial(run, each) for name, each in models.items()},
        latency_runs,
    )
    rows = {'dense': cost_row(model, run)}
    # The integers stand for as many weights, and are multiplied as often.
    rows['quantized'] = dict(rows['dense'])
    found = sizes(packed)
    rows['quantized']['checkpoint_mb'] = found['total'] / 1e6
    for name, row in rows.items():
        row['latency_ms'] = latencies[name]
    scheme = packed.quantization['scheme']
    return dict(
        title=f'{Path(cfg.filename).stem}: 4-bit weights in groups of '
        f'{scheme["group_size"]}',
        config=str(cfg.filename),
        options=packed.quantization,
        models=rows,
        bytes=found,
        left_in_float=choice.left,
        difference=_difference(model, packed, family.forward),
        notes=(
            f'Packed layers: {found["packed"] / 1e6:.2f} MB for '
            f'{found["packed_float32"] / 1e6:.2f} MB in float32 '
            f'({found["packed"] / found["packed_float32"]:.3f}); the rest is '
            f'{found["rest"] / 1e6:.2f} MB. In memory it is the same: weights '
            'are made when a layer runs. Latency: median of '
            f'{latency_runs} runs in turns on the CPU, '
            f'{torch.get_num_threads()} threads, PyTorch {torch.__version__}.'
        ),
        versions=dict(mmprune=__version__, torch=torch.__version__),
        sections=_sections(packed, choice),
    )


def _difference(model: nn.Module, packed: nn.Module, forward: Any) -> float:
    with torch.no_grad():
        outputs = [tensors_of(forward(each)) for each in (model, packed)]
    return largest_difference(*outputs)


def _sections(packed: nn.Module, choice: Choice) -> list[dict]:
    rows = []
    for path in choice.layers:
        layer = packed.get_submodule(path)
        shape = f'{layer.out_features} x {layer.in_features}'
        size = layer.packed.numel() + 2 * layer.scale.numel()
        rows.append([path, shape, size])
    return [
        dict(
            title='Packed layers',
            text='Linear layers whose weights are integers of 4 bits.',
            table=dict(columns=['layer', 'shape', 'bytes'], rows=rows),
        ),
        dict(
            title='Left in float, and why',
            text='All other matrices and kernels.',
            table=dict(
                columns=['tensor', 'why'],
                rows=[[name, why] for name, why in choice.left.items()],
            ),
        ),
    ]
