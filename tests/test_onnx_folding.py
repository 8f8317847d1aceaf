"""What of a graph is a number for every input becomes one."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mmprune.onnx_folding import fold_constants, static_shapes

FLOAT = TensorProto.FLOAT


def model(nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(
        nodes,
        'graph',
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs],
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    opsets = [helper.make_opsetid('', 18), helper.make_opsetid('own', 1)]
    return helper.make_model(graph, opset_imports=opsets)


def kinds(folded):
    return [node.op_type for node in folded.graph.node]


# x [2, 3, 4] flattened to [2, 12] by sizes that the graph asks for.
FLATTEN = [
    helper.make_node('Shape', ['x'], ['size'], start=0, end=1),
    helper.make_node('Constant', [], ['rest'], value_ints=[-1]),
    helper.make_node('Concat', ['size', 'rest'], ['to'], axis=0),
    helper.make_node('Reshape', ['x', 'to'], ['flat']),
]


def test_sizes_that_a_graph_asks_for_become_numbers():
    more = [
        # Known only after the reshape is: a second pass.
        helper.make_node('Shape', ['flat'], ['sizes']),
        helper.make_node('Cast', ['sizes'], ['as_float'], to=FLOAT),
        helper.make_node('ReduceSum', ['as_float'], ['sum'], keepdims=0),
        helper.make_node('Mul', ['flat', 'sum'], ['y']),
    ]
    before = model(FLATTEN + more, [('x', (2, 3, 4))], [('y', (2, 12))])
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    (expected,) = ReferenceEvaluator(before).run(None, {'x': x})
    folded = fold_constants(before)
    assert kinds(folded) == ['Reshape', 'Mul']
    assert static_shapes(folded.graph)['flat'] == (2, 12)
    (found,) = ReferenceEvaluator(folded).run(None, {'x': x})
    assert np.array_equal(found, expected) and found[1, 0] == 12 * 14


def test_an_output_may_be_a_number():
    nodes = [
        helper.make_node('Shape', ['x'], ['size']),
        helper.make_node('Cast', ['size'], ['y'], to=FLOAT),
    ]
    folded = fold_constants(model(nodes, [('x', (5, 7))], [('y', (2,))]))
    assert kinds(folded) == []
    (y,) = folded.graph.initializer
    assert numpy_helper.to_array(y).tolist() == [5, 7]


def test_weights_stay_weights_and_are_not_computed_with():
    weight = np.ones((64, 64), np.float32)
    nodes = [
        helper.make_node('Transpose', ['w'], ['turned']),
        helper.make_node('MatMul', ['x', 'turned'], ['y']),
    ]
    folded = fold_constants(
        model(nodes, [('x', (1, 64))], [('y', (1, 64))], [('w', weight)])
    )
    assert kinds(folded) == ['Transpose', 'MatMul']
    assert [each.name for each in folded.graph.input] == ['x']
    assert [each.name for each in folded.graph.initializer] == ['w']


@pytest.mark.parametrize(
    'node',
    [
        helper.make_node('RandomNormal', [], ['c'], shape=[2]),
        helper.make_node('Strange', ['two'], ['c'], domain='own'),
    ],
)
def test_what_is_random_or_of_another_domain_is_left(node):
    nodes = [
        helper.make_node('Constant', [], ['two'], value_floats=[1.0, 2.0]),
        node,
        helper.make_node('Add', ['x', 'c'], ['y']),
    ]
    folded = fold_constants(model(nodes, [('x', (2,))], [('y', (2,))]))
    assert kinds(folded) == [node.op_type, 'Add']


def test_what_nobody_reads_is_dropped():
    nodes = [
        helper.make_node('Relu', ['x'], ['lost']),
        helper.make_node('Neg', ['x'], ['y']),
    ]
    unread = [('w', np.ones((40, 40), np.float32))]
    folded = fold_constants(model(nodes, [('x', (2,))], [('y', (2,))], unread))
    assert kinds(folded) == ['Neg'] and not folded.graph.initializer
