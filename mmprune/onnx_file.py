"""ONNX files: written from a module, checked, run by onnxruntime."""

import contextlib
import io
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .atomic_file import write_whole
from .errors import UserError, sentence
from .onnx_folding import fold_constants, static_shapes
from .tensor_path import Part

# GridSample is an operator from 16 on. 18 is the newest that writes its mode
# as TensorRT reads it: in 20 `bilinear` is `linear`, which TensorRT's parser
# takes for `nearest` without a word.
OPSET, OLDEST, NEWEST = 18, 16, 19
# What makes shapes or the course of a run depend on values.
_DYNAMIC = (
    'If Loop Scan NonZero Unique Compress NonMaxSuppression SplitToSequence '
    'ConcatFromSequence SequenceAt SequenceConstruct SequenceEmpty '
    'SequenceErase SequenceInsert SequenceLength SequenceMap'
)
DYNAMIC_OPS = frozenset(_DYNAMIC.split())


def check_export(opset: int = OPSET) -> None:
    """Refuses before the work what cannot be exported here.

    Raises:
        ImportError: If a package is not installed.
        ValueError: If the opset is not one of those that are served.
    """
    missing = [n for n in ('onnx', 'onnxruntime') if find_spec(n) is None]
    if missing:
        raise ImportError(
            f'the export needs {" and ".join(missing)}, which is not '
            "installed; pip install 'mmprune[export]'"
        )
    if not OLDEST <= opset <= NEWEST:
        raise ValueError(
            f'--opset {opset}: GridSample needs {OLDEST}, and from 20 on '
            f'TensorRT reads it wrongly; give {OLDEST} to {NEWEST}'
        )


def write_onnx(part: Part, path: Path, opset: int = OPSET) -> dict[str, int]:
    """Writes a part as an ONNX file with static shapes, whole or not at all.

    Args:
        part: What is written.
        path: Where.
        opset: Of the operators.

    Returns:
        How often each operator is in it.

    Raises:
        ValueError: If it cannot be exported, with the operator and the
            module that it came from, or is not as static as it has to be.
    """
    import onnx

    model = onnx.load_from_string(_traced(part, opset))
    model = fold_constants(_named(model, part))
    onnx.checker.check_model(model, full_check=part.runs)
    counts = operators(model)
    if part.static:
        found = sorted(DYNAMIC_OPS & set(counts))
        if found:
            raise ValueError(
                f'the graph of {part.name} has {", ".join(found)}, whose '
                'results depend on values, and TensorRT refuses it'
            )
        unknown = without_shape(model)
        if unknown:
            raise ValueError(
                f'the graph of {part.name} has {len(unknown)} tensors of '
                f'unknown shape, the first is {unknown[0]}'
            )
    write_whole(path, model.SerializeToString())
    return counts


def operators(model: Any) -> dict[str, int]:
    """Returns how often each operator is in a graph and what it holds."""
    counts = Counter()
    graphs = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            counts[node.op_type] += 1
            graphs += [a.g for a in node.attribute if a.HasField('g')]
    return dict(sorted(counts.items()))


def without_shape(model: Any) -> list[str]:
    """Returns the tensors of a graph whose shape has an unknown size."""
    known = static_shapes(model.graph)
    # Nobody but its runtime knows what an operator of its own returns.
    nodes = [node for node in model.graph.node if not node.domain]
    names = [name for node in nodes for name in node.output if name]
    return [name for name in names if name not in known]


def described(path: Path) -> dict[str, dict]:
    """Returns ``inputs`` and ``outputs`` of a file: shape, type, meaning."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return {
        kind: {value.name: _described(value) for value in values}
        for kind, values in (
            ('inputs', graph.input),
            ('outputs', graph.output),
        )
    }


def _described(value: Any) -> dict:
    import onnx

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    found = dict(
        shape=[d.dim_value for d in tensor.shape.dim], dtype=dtype.name
    )
    return found | ({'about': value.doc_string} if value.doc_string else {})


def session(path: Path, threads: int = 0) -> Any:
    """Opens an ONNX file in onnxruntime, on the CPU.

    Args:
        path: The file.
        threads: Threads of an operator, 0 for as many as PyTorch has.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    # An arena keeps the peak of each session: 5 GB of a head of VAD-base.
    options.enable_cpu_mem_arena = False
    # Threads that wait for the next run would slow PyTorch, timed in turns.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    return onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider']
    )


def run_session(
    opened: Any, inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns the outputs of a session by name."""
    wanted = {each.name for each in opened.get_inputs()}
    feeds = {k: v.numpy() for k, v in inputs.items() if k in wanted}
    names = [each.name for each in opened.get_outputs()]
    arrays = opened.run(names, feeds)
    return {
        name: torch.from_numpy(array)
        for name, array in zip(names, arrays, strict=True)
    }


def _traced(part: Part, opset: int) -> bytes:
    """The graph as the TorchScript exporter of PyTorch writes it.

    The newer one needs onnxscript, writes opset 20 of its own accord and
    turns back by a converter; this one needs nothing, and a symbolic
    function per operator says what is written.
    """
    buffer = io.BytesIO()
    part.module.eval()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            warnings.catch_warnings(),
            # Of a failure it prints the whole graph.
            contextlib.redirect_stdout(io.StringIO()),
        ):
            # Sizes are constants on purpose, and the exporter is deprecated.
            warnings.simplefilter('ignore')
            torch.onnx.export(
                part.module,
                tuple(part.inputs.values()),
                buffer,
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                opset_version=opset,
                dynamo=False,
            )
    except Exception as error:
        raise UserError(_why(error, part)) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    return buffer.getvalue()


def _why(error: Exception, part: Part) -> str:
    """One sentence about what did not export, with its operator and module."""
    found = re.search(r"operator '?([\w:]+)'?", str(error))
    text = sentence(error).split('. ')[0]
    if found:
        text = f'the operator {found[1]} has no form in ONNX'
    return f'{part.name} cannot be exported{_place(error)}: {text}'


def _place(error: Exception) -> str:
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get('node') or frame.f_locals.get('n')
        scope = getattr(node, 'scopeName', lambda: '')()
        if scope:
            path = [each.rpartition('::')[2] for each in scope.split('/')]
            return f', at {".".join(each for each in path if each)}'
    return ''


def _named(model: Any, part: Part) -> Any:
    """Says what each input and output is where a reader of the file looks."""
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = part.about.get(value.name, '')
    return model
