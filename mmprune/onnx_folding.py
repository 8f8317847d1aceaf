"""What of an ONNX graph is the same for every input, computed once."""

from typing import Any

import numpy as np

# Elements of the largest result that is stored instead of computed.
_LARGEST = 1 << 20


def fold_constants(model: Any) -> Any:
    """Returns a graph in which sizes are numbers, and so all shapes known.

    A traced graph asks tensors for their shape and computes with it; shape
    inference gives up there, and TensorRT takes such sizes for dynamic. With
    static inputs all of that is constant.

    Args:
        model: An ONNX model; changed.
    """
    import onnx

    _numbers_as_weights(model.graph)
    while True:
        # What was not known before would stay unknown.
        del model.graph.value_info[:]
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        if not _fold_once(model):
            break
    _drop_unread(model.graph)
    return model


def _fold_once(model: Any) -> bool:
    """Folds in the order of the nodes; returns whether anything was."""
    from onnx import ValueInfoProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    shapes = static_shapes(graph)
    read = {n for node in graph.node for n in node.input}
    kept, folded = [], False
    for node in graph.node:
        if node.op_type == 'Shape' and node.input[0] in shapes:
            attributes = {a.name: a.i for a in node.attribute}
            part = slice(attributes.get('start', 0), attributes.get('end'))
            values = [np.array(shapes[node.input[0]][part], np.int64)]
        elif _is_constant(node, known, shapes):
            inputs = [n for n in node.input if n]
            single = helper.make_model(
                helper.make_graph(
                    [node],
                    'node',
                    [_value(name, known[name]) for name in inputs],
                    [ValueInfoProto(name=n) for n in node.output],
                ),
                opset_imports=model.opset_import,
            )
            given = {name: known[name] for name in inputs}
            values = ReferenceEvaluator(single).run(None, given)
        else:
            kept.append(node)
            continue
        folded = True
        for name, value in zip(node.output, values, strict=True):
            known[name] = np.asarray(value)
            if name in read or name in {o.name for o in graph.output}:
                graph.initializer.append(
                    numpy_helper.from_array(known[name], name)
                )
    del graph.node[:]
    graph.node.extend(kept)
    return folded


def _is_constant(node: Any, known: dict, shapes: dict) -> bool:
    if node.domain or any(a.HasField('g') for a in node.attribute):
        return False
    inputs = [name for name in node.input if name]
    if node.op_type.startswith('Random') or not inputs:
        return False
    if not all(name in known for name in inputs):
        return False
    sizes = [np.prod(shapes.get(name, (0,))) for name in node.output]
    return max(sizes) <= _LARGEST


def static_shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors whose sizes are all known."""
    found = {t.name: tuple(t.dims) for t in graph.initializer}
    for info in (*graph.input, *graph.output, *graph.value_info):
        tensor = info.type.tensor_type
        if tensor.HasField('shape') and all(
            d.HasField('dim_value') for d in tensor.shape.dim
        ):
            found[info.name] = tuple(d.dim_value for d in tensor.shape.dim)
    return found


def _numbers_as_weights(graph: Any) -> None:
    """Turns Constant nodes into initializers."""
    from onnx import helper, numpy_helper

    kept = []
    for node in graph.node:
        if node.op_type != 'Constant':
            kept.append(node)
            continue
        value = helper.get_attribute_value(node.attribute[0])
        if hasattr(value, 'dims'):
            value = numpy_helper.to_array(value)
        tensor = numpy_helper.from_array(np.array(value), node.output[0])
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)


def _drop_unread(graph: Any) -> None:
    """Removes what nothing reads any more."""
    wanted = {each.name for each in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in wanted for name in node.output):
            wanted.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    tensors = [t for t in graph.initializer if t.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def _value(name: str, array: np.ndarray) -> Any:
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, array.shape)
