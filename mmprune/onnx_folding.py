"""What of an ONNX graph is the same for every input, computed once."""

from typing import Any

import numpy as np

# Elements of the largest result that is stored instead of computed.
_LARGEST = 1 << 20
# More elements than a list of sizes has.
_FEW = 1 << 10


def fold_constants(model: Any) -> Any:
    """Returns a graph in which sizes are numbers, and so all shapes known.

    A traced graph asks tensors for their shape and computes with it; shape
    inference gives up there, and TensorRT takes such sizes for dynamic. With
    static inputs all of that is constant.

    Args:
        model: An ONNX model; changed.
    """
    import onnx

    graph = model.graph
    _numbers_as_weights(graph)
    heavy = _set_aside(graph)
    own = {n for node in graph.node if node.domain for n in node.output}
    while True:
        # What was not known before would stay unknown, but nobody else knows
        # what an operator of another domain returns.
        infos = [info for info in graph.value_info if info.name in own]
        del graph.value_info[:]
        graph.value_info.extend(infos)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        graph = model.graph
        if not _fold_once(model):
            break
    names = {tensor.name for tensor in heavy}
    inputs = [each for each in graph.input if each.name not in names]
    del graph.input[:]
    graph.input.extend(inputs)
    graph.initializer.extend(heavy)
    _drop_unread(graph)
    return model


def _set_aside(graph: Any) -> list[Any]:
    """Takes the weights out, as inputs, and returns them.

    Shape inference copies a model each time, and sizes are no weights.
    """
    from onnx import helper

    heavy = [t for t in graph.initializer if np.prod(t.dims) > _FEW]
    light = [t for t in graph.initializer if np.prod(t.dims) <= _FEW]
    del graph.initializer[:]
    graph.initializer.extend(light)
    for tensor in heavy:
        kind, shape = tensor.data_type, tensor.dims
        info = helper.make_tensor_value_info(tensor.name, kind, shape)
        graph.input.append(info)
    return heavy


def _fold_once(model: Any) -> bool:
    """Folds what is known by now; returns whether anything was."""
    from onnx import numpy_helper

    graph = model.graph
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    shapes = static_shapes(graph)
    names, folded, kept = set(known), [], []
    for node in graph.node:
        if node.op_type == 'Shape' and node.input[0] in shapes:
            attributes = {a.name: a.i for a in node.attribute}
            part = slice(attributes.get('start', 0), attributes.get('end'))
            sizes = shapes[node.input[0]][part]
            known[node.output[0]] = np.array(sizes, np.int64)
        elif _is_constant(node, names, shapes):
            folded.append(node)
        else:
            kept.append(node)
            continue
        names.update(node.output)
    if len(kept) == len(graph.node):
        return False
    read = {name for node in kept for name in node.input}
    read |= {each.name for each in graph.output}
    values = known | _computed(folded, known, read, model.opset_import)
    before = {t.name for t in graph.initializer}
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(values[name]), name)
        for name in sorted((read & set(values)) - before)
    )
    del graph.node[:]
    graph.node.extend(kept)
    return True


def _computed(
    nodes: list[Any], known: dict, read: set[str], opsets: Any
) -> dict[str, np.ndarray]:
    """Runs nodes in order; returns what others read of their outputs."""
    from onnx import ValueInfoProto, helper
    from onnx.reference import ReferenceEvaluator

    made = {name for node in nodes for name in node.output if name}
    given = {name for node in nodes for name in node.input if name} - made
    outputs = sorted(made & read)
    if not outputs:
        return {}
    graph = helper.make_graph(
        nodes,
        'constants',
        [_value(name, known[name]) for name in sorted(given)],
        [ValueInfoProto(name=name) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=opsets)
    feeds = {name: known[name] for name in given}
    found = ReferenceEvaluator(model).run(outputs, feeds)
    return dict(zip(outputs, found, strict=True))


def _is_constant(node: Any, known: set[str], shapes: dict) -> bool:
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
