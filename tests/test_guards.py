"""Only masks.py writes weights, surgery.py cuts, checkpoints/ unpickles.

Each rule reads the source and names the offending line. What looks like an
offence and is none stands in a table, by function, with the reason.
"""

import ast
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# module:function -> why this writes no value of a trained weight.
WRITES = {
    'masks:*': 'the place for it',
    'compat/ops/*:*': 'the buffers that callers of an op of mmcv hand in',
    'models/pretrained:move_weights': 'the weights of a file, as they are',
    'importance/wanda:Wanda.weights': 'scores, a tensor of their own',
    '*:GradientAverages._add': 'moving averages of gradients',
    '*:InputSums._add': 'sums of what layers read',
    '*:IterativePruningLoop._next_round': 'how many steps an average holds',
}
SHAPES = {
    'surgery:*': 'the place for it',
    'attention:*.take_over': 'the widths that surgery has given the weights',
    'compat/__init__:_replace_everywhere': 'functions of mmengine',
    'checkpoints/plain_config:describe_shapes': 'entries of a config',
    'models/semi_structured:to_semi_structured': 'the same, laid out anew',
    'quantization/layers:PackedLinear.*': 'integers of as many weights',
}
UNPICKLES = {
    'mmprune/checkpoints/*:*': 'the place for it',
    'projects/VAD/data/packed_records:Records.__getitem__': (
        'bytes that this process has pickled itself'
    ),
}

# In-place methods of a tensor that leave its values alone.
HARMLESS = {'requires_grad_', 'share_memory_', 'rename_'}
# What these return belongs to no model yet.
FRESH = {'zeros', 'ones', 'full', 'empty', 'rand', 'randn', 'arange'}
TENSORS = {'weight', 'bias', 'param', 'parameter', 'tensor'}
SIZES = {
    *('weight', 'bias', 'in_features', 'out_features', 'in_channels'),
    *('out_channels', 'num_features', 'num_heads', 'normalized_shape'),
}
UNSAFE = {
    *('torch.load', 'torch.serialization.load', 'joblib.load'),
    *(
        f'{module}.{name}'
        for module in ('pickle', '_pickle', 'dill', 'cloudpickle')
        for name in ('load', 'loads', 'Unpickler')
    ),
    *('pandas.read_pickle', 'shelve.open', 'marshal.load', 'marshal.loads'),
    *('mmengine.load', 'mmengine.fileio.load'),
}

Finder = Callable[[ast.AST, dict[str, str]], bool]


def writes_weights(node: ast.AST, names: dict[str, str]) -> bool:
    """Whether a node writes values of a tensor that exists already.

    That is a call of a function or method named like ``mul_``, one with
    ``out=``, and an assignment to ``x.data``, to an element of a ``weight``,
    or such as ``weight *= 2``. Gradients, new tensors and whole state dicts
    that are loaded do not count.
    """
    if isinstance(node, ast.Call):
        return _is_in_place(node) or any(
            keyword.arg == 'out' for keyword in node.keywords
        )
    for target in _targets(node):
        parts = list(_chain(target))
        if 'data' in {p.attr for p in parts if isinstance(p, ast.Attribute)}:
            return True
        if isinstance(target, ast.Subscript) or isinstance(
            node, ast.AugAssign
        ):
            base = next(p for p in parts if not isinstance(p, ast.Subscript))
            if _own_name(base) in TENSORS:
                return True
    return False


def _is_in_place(call: ast.Call) -> bool:
    name = _own_name(call.func)
    if not name.endswith('_') or name.endswith('__') or name in HARMLESS:
        return False
    of = call.func.value if isinstance(call.func, ast.Attribute) else None
    if _own_name(of) == 'grad':
        return False
    maker = _own_name(of.func) if isinstance(of, ast.Call) else ''
    return maker.removesuffix('_like') not in FRESH


def changes_shapes(node: ast.AST, names: dict[str, str]) -> bool:
    """Whether a node gives a module another tensor or another width.

    That is making an ``nn.Parameter``, registering one or a buffer, writing
    into ``_parameters`` or ``_buffers``, any ``setattr``, and an assignment
    to ``module.weight`` or ``module.out_features`` of another object.
    """
    if isinstance(node, ast.Call):
        return _own_name(node.func) in {
            *('setattr', 'Parameter', 'Buffer'),
            *('register_parameter', 'register_buffer'),
        }
    for target in _targets(node):
        if isinstance(target, ast.Subscript):
            kinds = {_own_name(part) for part in _chain(target)}
            if kinds & {'_parameters', '_buffers'}:
                return True
        elif (
            isinstance(target, ast.Attribute)
            and target.attr in SIZES
            and _own_name(target.value) != 'self'
        ):
            return True
    return False


def unpickles(node: ast.AST, names: dict[str, str]) -> bool:
    """Whether a node names something that may run the code of a file."""
    if isinstance(node, ast.Name | ast.Attribute):
        return _dotted(node, names) in UNSAFE
    if isinstance(node, ast.ImportFrom):
        found = {f'{node.module}.{alias.name}' for alias in node.names}
        return bool(found & UNSAFE)
    if not isinstance(node, ast.Call):
        return False
    for keyword in node.keywords:
        stated = isinstance(keyword.value, ast.Constant)
        if keyword.arg == 'allow_pickle':
            return not (stated and keyword.value.value is False)
        if keyword.arg == 'weights_only':
            return not (stated and keyword.value.value is True)
    return False


def _targets(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.Assign):
        return [
            part
            for target in node.targets
            for part in getattr(target, 'elts', [target])
        ]
    return [node.target] if isinstance(node, ast.AugAssign) else []


def _chain(node: ast.AST) -> Iterator[ast.AST]:
    """Yields ``a.b[0]``, ``a.b`` and ``a``."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        yield node
        node = node.value
    yield node


def _own_name(node: ast.AST | None) -> str:
    """Returns ``c`` of ``a.b.c`` or of ``c``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ''


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    """Returns ``torch.load`` of ``t.load`` after ``import torch as t``."""
    if isinstance(node, ast.Attribute):
        return f'{_dotted(node.value, names)}.{node.attr}'
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    return ''


def imported(tree: ast.AST) -> dict[str, str]:
    """Returns what each imported name of a file stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    names[alias.asname] = alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                own = alias.asname or alias.name
                names[own] = f'{node.module}.{alias.name}'
    return names


def scan(root: Path, folders: list[str], find: Finder) -> dict[str, str]:
    """Returns `module:function`, with its line, -> the offending source."""
    found = {}
    for path in sorted(p for f in folders for p in (root / f).rglob('*.py')):
        tree = ast.parse(path.read_text())
        names = imported(tree)
        module = path.relative_to(root).with_suffix('').as_posix()
        for where, node in _nodes(tree, '<module>'):
            if find(node, names):
                place = f'{module}:{where} line {node.lineno}'
                source = ast.unparse(node).splitlines()[0]
                found.setdefault(place, source)
    return found


def _nodes(tree: ast.AST, where: str) -> Iterator[tuple[str, ast.AST]]:
    """Yields each node with the function or method that it is in."""
    for node in ast.iter_child_nodes(tree):
        inside = where
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            outer = '' if where == '<module>' else f'{where}.'
            inside = f'{outer}{node.name}'
        yield inside, node
        yield from _nodes(node, inside)


def offences(found: dict[str, str], allowed: dict[str, str]) -> list[str]:
    """Returns the findings that no entry of a table allows."""
    return [
        f'{place}: {source}'
        for place, source in found.items()
        if not any(_covers(entry, place) for entry in allowed)
    ]


def _covers(entry: str, place: str) -> bool:
    return fnmatch(place.partition(' ')[0], entry)


def in_package(find: Finder) -> dict[str, str]:
    """Returns the findings in mmprune/, by module without that name."""
    found = scan(ROOT, ['mmprune'], find)
    return {place.removeprefix('mmprune/'): x for place, x in found.items()}


def test_only_masks_writes_weights():
    assert offences(in_package(writes_weights), WRITES) == []


def test_only_surgery_changes_shapes():
    assert offences(in_package(changes_shapes), SHAPES) == []


def test_only_checkpoints_unpickles():
    found = scan(ROOT, ['mmprune', 'projects', 'tools'], unpickles)
    assert offences(found, UNPICKLES) == []


@pytest.mark.parametrize(
    ('find', 'allowed'),
    [(writes_weights, WRITES), (changes_shapes, SHAPES)],
)
def test_each_exception_is_still_needed(find, allowed):
    found = in_package(find)
    idle = [e for e in allowed if not any(_covers(e, p) for p in found)]
    assert idle == []


@pytest.mark.parametrize(
    'line',
    [
        'module.weight.mul_(mask)',
        'w.data.masked_fill_(mask, 0)',
        'model.get_parameter(name).index_fill_(0, index, 0.0)',
        'param.copy_(other)',
        'nn.init.zeros_(layer.weight)',
        'torch.mul(w, mask, out=w)',
        'w.data = w * mask',
        'w.data[mask] = 0',
        'a.data, b.data = pair',
        'w.data[mask] *= 0.5',
        'module.weight[mask] = 0',
        'weight *= mask',
    ],
)
def test_a_written_weight_is_found(tmp_path, line):
    assert offences(report(tmp_path, line, writes_weights), {}) == [
        f'pkg/stray:Late.late line 4: {line}'
    ]


@pytest.mark.parametrize(
    'line',
    [
        'module.weight = nn.Parameter(new)',
        'setattr(module, leaf, new)',
        'module._parameters[leaf] = new',
        "getattr(module, 'x')._buffers['mean'] = new",
        'module.register_parameter(leaf, new)',
        'linear.out_features = 3',
        'self.fc.weight = new',
    ],
)
def test_a_changed_shape_is_found(tmp_path, line):
    found = offences(report(tmp_path, line, changes_shapes), {})
    assert found[0] == f'pkg/stray:Late.late line 4: {line}'


@pytest.mark.parametrize(
    ('line', 'head'),
    [
        ('torch.load(path)', 'import torch'),
        ('t.load(path, weights_only=True)', 'import torch as t'),
        ('read(path)', 'from torch import load as read'),
        ('pickle.loads(data)', 'import pickle'),
        ('x = map(pickle.load, files)', 'import pickle'),
        ('x = type("U", (pickle.Unpickler,), {})', 'import pickle'),
        ('np.load(path, allow_pickle=True)', 'import numpy as np'),
        ('np.load(path, allow_pickle=flag)', 'import numpy as np'),
        ('joblib.load(path)', 'import joblib'),
        ('mmengine.load("infos.pkl")', 'import mmengine'),
        ('reader.read(path, weights_only=False)', 'import reader'),
    ],
)
def test_an_unpickled_file_is_found(tmp_path, line, head):
    assert offences(report(tmp_path, line, unpickles, head), UNPICKLES)


@pytest.mark.parametrize(
    ('line', 'find'),
    [
        ('w.requires_grad_(False)', writes_weights),
        ('w.grad.masked_fill_(mask, 0)', writes_weights),
        ('torch.zeros_like(w).masked_fill_(mask, 1)', writes_weights),
        ('weights[name] = w * mask', writes_weights),
        ('super().__init__()', writes_weights),
        ('self.weight = 0.5', changes_shapes),
        ('width = layer.out_features', changes_shapes),
        ('pickle.dumps(x)', unpickles),
        ('np.load(path, allow_pickle=False)', unpickles),
        ('json.load(file)', unpickles),
    ],
)
def test_what_is_no_offence_is_not_found(tmp_path, line, find):
    assert report(tmp_path, line, find, 'import json, pickle') == {}


def test_an_exception_covers_its_function_alone(tmp_path):
    found = report(tmp_path, 'w.mul_(2)', writes_weights)
    assert offences(found, {'pkg/stray:Late.late': 'why'}) == []
    assert offences(found, {'pkg/stray:*.late': 'why'}) == []
    assert offences(found, {'pkg/stray:Late.lat': 'why'}) != []
    assert offences(found, {'pkg/masks:*': 'why'}) != []


def report(
    folder: Path, line: str, find: Finder, head: str = 'import torch'
) -> dict[str, str]:
    """Returns what a rule finds in a method that consists of one line."""
    (folder / 'pkg').mkdir()
    text = f'{head}\nclass Late:\n    def late(self):\n        {line}\n'
    (folder / 'pkg' / 'stray.py').write_text(text)
    return scan(folder, ['pkg'], find)
