"""Exports a model to ONNX and checks it: what ``tools/export.py`` does."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..atomic_file import save_json, write_folder, write_whole
from ..checkpoints.loading import build_model, load_checkpoint, loaded_model
from ..cost import count_params, measure_latencies
from ..errors import blame
from ..family import build_family
from ..onnx_file import (
    OPSET,
    check_export,
    described,
    run_session,
    session,
    write_onnx,
)
from ..plan import checkpoint_plan
from ..pruners.verify import TOLERANCE, relative_difference
from ..tensor_path import TensorPath
from ..version import __version__
from .folder import begun, pruned_config

SUMMARY = 'deploy.json'


def export_checkpoint(
    cfg: Config,
    checkpoint: str | Path,
    folder: Path,
    *,
    trust: bool = False,
    **how: Any,
) -> dict[str, Any]:
    """Exports the model of a checkpoint, dense or pruned.

    Beside the graphs of a pruned one stand its checkpoint and a config that
    a stock Runner, and so mmdeploy, builds it from.

    Args:
        cfg: Config of the dense model.
        checkpoint: The weights.
        folder: What is made; see :func:`export`.
        trust: Whether to unpickle what the safe loader refuses.
        how: As :func:`export` takes it.

    Returns:
        What ``deploy.json`` holds.

    Raises:
        ValueError: If the checkpoint does not fit, or :func:`export` refuses.
    """
    check_export(how.get('opset', OPSET))
    loaded = load_checkpoint(checkpoint, trust)
    model = loaded_model(cfg, loaded, checkpoint)
    # A statement: `eval` of mmdet's distilled detectors returns nothing.
    model.eval()
    pruned = checkpoint_plan(loaded) is not None
    dense = build_model(cfg) if pruned else None
    if dense is not None:
        dense.eval()
    name = Path(checkpoint).name

    def add(folder: Path) -> None:
        shutil.copyfile(checkpoint, folder / name)
        text = pruned_config(cfg, name)
        write_whole((folder / name).with_suffix('.py'), text.encode())

    return export(
        cfg,
        model,
        folder,
        dense=dense,
        add=add if pruned and Path(checkpoint).is_file() else None,
        about=dict(config=str(cfg.filename), checkpoint=str(checkpoint)),
        **how,
    )


def export(
    cfg: Config,
    model: nn.Module,
    folder: Path,
    *,
    dense: nn.Module | None = None,
    opset: int = OPSET,
    latency_runs: int = 5,
    options: Any = None,
    family: Any = None,
    add: Callable[[Path], None] | None = None,
    about: dict[str, Any] | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Writes the tensor path of a model as ONNX files, checked.

    The folder appears when every output of every file is what PyTorch
    computes, and not at all otherwise.

    Args:
        cfg: Config of the dense model, which names the family.
        model: What is exported, pruned or dense, in evaluation mode.
        folder: What is made; one that is there is replaced.
        dense: Timed beside the model; its weights do not matter.
        opset: Of the operators.
        latency_runs: Timed runs of each graph, 0 for none.
        options: What the family asks for, as its ``EXPORT_OPTIONS``.
        family: Where it is built already.
        add: Writes further files into the folder.
        about: Further entries of the summary.
        log: Prints a line.

    Returns:
        What ``deploy.json`` holds.

    Raises:
        ValueError: If a graph cannot be written or computes something else.
    """
    check_export(opset)
    family = family or build_family(cfg)
    path = _tensor_path(family, model, options, cfg)
    summary: dict[str, Any] = {}

    def write(beside: Path) -> None:
        files = _write_parts(path, beside, opset, log)
        opened = {
            part.name: session(beside / files[part.name]['file'])
            for part in path.parts
            if part.runs
        }

        def run(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            return run_session(opened[name], inputs)

        summary.update(
            {
                **(about or {}),
                'mmprune': __version__,
                'torch': torch.__version__,
                'opset': opset,
                'params': count_params(model),
                'parts': files,
                **path.facts,
            }
        )
        _check(path, run, files, log)
        if latency_runs:
            forwards = _forwards(path, run, 'exported')
            if dense is not None:
                forwards |= _dense_forwards(
                    family, dense, options, cfg, opset, beside
                )
            summary['threads'] = torch.get_num_threads()
            summary['latency_ms'] = measure_latencies(forwards, latency_runs)
        if add is not None:
            add(beside)
        save_json(summary, beside / SUMMARY)
        more = path.write(beside, run)
        if more:
            summary.update(more)
            save_json(summary, beside / SUMMARY)

    with begun(folder):
        write_folder(folder, write)
    return summary


def _tensor_path(
    family: Any, model: nn.Module, options: Any, cfg: Config
) -> TensorPath:
    more = () if options is None else (options,)
    if not hasattr(family, 'tensor_path'):
        raise ValueError(
            f'{type(family).__name__} does not say what of its model is '
            'exported; give it a tensor_path, as in docs/add_a_family.md'
        )
    with blame(f'the model of {cfg.filename} cannot be exported'):
        return family.tensor_path(model, *more)


def _write_parts(
    path: TensorPath, folder: Path, opset: int, log: Callable[[str], None]
) -> dict[str, dict]:
    """Writes the files; returns what the summary says of each."""
    files = {}
    for part in path.parts:
        start = time.perf_counter()
        file = folder / f'{part.name}.onnx'
        counts = write_onnx(part, file, opset)
        seconds = time.perf_counter() - start
        files[part.name] = dict(
            file=file.name,
            mb=round(file.stat().st_size / 1e6, 3),
            seconds=round(seconds, 2),
            **described(file),
            operators=counts,
        )
        log(f'{file.name}: {files[part.name]["mb"]} MB in {seconds:.1f} s')
    return files


def _check(
    path: TensorPath, run: Any, files: dict, log: Callable[[str], None]
) -> None:
    """Notes the difference of every output.

    Raises:
        ValueError: If one is above the tolerance.
    """
    for each in path.compare(run):
        place = files[each.part].setdefault('differences', {})
        with blame(f'{each.part}.onnx, output {each.output}'):
            found = relative_difference(each.expected, each.found)
        place[each.output] = max(found, place.get(each.output, 0.0))
    for name, entry in files.items():
        found = entry.get('differences', {})
        if not found:
            continue
        worst = max(found, key=found.get)
        log(f'{name}: largest difference {found[worst]:.1e} ({worst})')
        if not found[worst] <= TOLERANCE:
            raise ValueError(
                f'{name}.onnx computes something else than PyTorch: '
                f'{worst} differs by {found[worst]:.1e} of its scale, '
                f'{TOLERANCE:.0e} is allowed, and it was not written'
            )


def _forwards(path: TensorPath, run: Any, title: str) -> dict[str, Any]:
    """Returns for each part a call by onnxruntime and one by PyTorch."""
    found = {}
    for part in path.parts:
        if not part.runs:
            continue
        found[f'{part.name} {title}'] = lambda part=part: run(
            part.name, part.inputs
        )
        found[f'{part.name} {title} torch'] = lambda part=part: part.run(
            part.inputs
        )
    return found


def _dense_forwards(
    family: Any,
    dense: nn.Module,
    options: Any,
    cfg: Config,
    opset: int,
    folder: Path,
) -> dict[str, Any]:
    """Exports the dense model to nowhere; returns calls to time."""
    path = _tensor_path(family, dense, options, cfg)
    opened = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for part in path.parts:
            file = Path(scratch) / f'{part.name}.onnx'
            write_onnx(part, file, opset)
            if part.runs:
                opened[part.name] = session(file)
    return _forwards(
        path, lambda name, given: run_session(opened[name], given), 'dense'
    )
