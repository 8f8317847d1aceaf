"""The import layers that docs/architecture.md promises."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOC = (ROOT / 'docs' / 'architecture.md').read_text()
OWN = 'own package'


class Rules(NamedTuple):
    """The two tables of the document."""

    layers: dict[str, str]  # pattern of modules -> layer
    allowed: dict[str, set[str]]  # layer -> layers it may import
    libraries: dict[str, set[str]]  # library -> modules or layers

    def pattern(self, module: str) -> str:
        """Returns the row entry that a module such as `ops/nms` is under."""
        for pattern in self.layers:
            if fnmatch(module, pattern) or pattern == f'{module}/*':
                return pattern
        raise KeyError(f'{module} is in no row of docs/architecture.md')


def rows(text: str, head: str) -> Iterator[list[str]]:
    """Yields the cells of the table whose head line starts with `head`."""
    table = text.split(f'\n| {head} |', 1)[1].split('\n\n', 1)[0]
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip('|').split('|')]


def entries(cell: str) -> list[str]:
    """Returns the comma-separated entries of a cell, without backticks."""
    return [entry.strip(' `') for entry in cell.split(',')]


def read_rules(text: str) -> Rules:
    """Returns the rules that a document states."""
    layers, allowed, libraries = {}, {}, {}
    for layer, modules, imports in rows(text, 'layer'):
        layers.update(dict.fromkeys(entries(modules), layer))
        allowed[layer] = set(entries(imports))
    for names, places in rows(text, 'library'):
        for name in entries(names):
            libraries[name] = set(entries(places))
    return Rules(layers, allowed, libraries)


def modules_of(package: Path) -> dict[str, Path]:
    """Returns `ops/nms` -> file; a package goes by its own name."""
    files = {}
    for path in sorted(package.rglob('*.py')):
        name = path.relative_to(package).with_suffix('').as_posix()
        files[name.removesuffix('/__init__')] = path
    return files


def imports_of(path: Path, package: Path) -> Iterator[str]:
    """Yields `library` or `mmprune/module` for all imports of a file."""
    folder = ['mmprune', *path.relative_to(package).parent.parts]
    known = modules_of(package)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) - node.level + 1]
            parts = (start if node.level else []) + [node.module or '']
            stem = '.'.join(part for part in parts if part)
            targets = [f'{stem}.{alias.name}' for alias in node.names]
        else:
            continue
        for target in targets:
            yield resolve(target, known)


def resolve(target: str, known: dict[str, Path]) -> str:
    """Returns the module that a dotted name lies in."""
    top, *rest = target.split('.')
    if top != 'mmprune':
        return top
    while rest and '/'.join(rest) not in known:
        rest.pop()
    return '/'.join(['mmprune', *(rest or ['__init__'])])


def breaches(package: Path, rules: Rules) -> list[str]:
    """Returns the imports of a package that its rules do not allow."""
    found = []
    for module, path in modules_of(package).items():
        pattern = rules.pattern(module)
        layer = rules.layers[pattern]
        for target in imports_of(path, package):
            library = rules.libraries.get(target)
            if library is not None and not library & {module, layer}:
                found.append(f'{module} imports {target}')
            if not target.startswith('mmprune/'):
                continue
            target = target.removeprefix('mmprune/')
            other = rules.pattern(target)
            same = other == pattern and (
                OWN in rules.allowed[layer] or path.name == '__init__.py'
            )
            if not same and rules.layers[other] not in rules.allowed[layer]:
                found.append(f'{module} imports {target}')
    return found


def circles(package: Path) -> list[str]:
    """Returns a circle of imports, if there is one, for each module in it.

    An import counts wherever it stands: in a function, or for types alone.
    That a module of a package loads its ``__init__`` does not count.
    """
    known = modules_of(package)
    graph = {
        module: {
            target.removeprefix('mmprune/')
            for target in imports_of(path, package)
            if target.startswith('mmprune/')
        }
        - {module}
        for module, path in known.items()
    }
    found = (shortest_circle(graph, module) for module in graph)
    # One that begins at each of its modules is the same circle.
    return sorted({' -> '.join([*c, c[0]]) for c in found if c})


def shortest_circle(graph: dict[str, set[str]], start: str) -> list[str]:
    """Returns the modules of a circle through one, its first name first."""
    paths = [[start]]
    seen = set()
    for path in paths:
        for target in sorted(graph[path[-1]]):
            if target == start:
                first = path.index(min(path))
                return path[first:] + path[:first]
            if target not in seen:
                seen.add(target)
                paths.append([*path, target])
    return []


RULES = read_rules(DOC)
TREE = """
    __init__ compat/__init__ compat/ops/__init__ checkpoints/__init__
    checkpoints/reading groups registry plan cost masks surgery
    adapters/__init__ adapters/vit adapters/ffn discovery/rules
    models/__init__ models/pruned models/loading hooks/plan_hook
"""


def test_the_package_keeps_its_layers():
    assert breaches(ROOT / 'mmprune', RULES) == []


def test_no_modules_import_each_other():
    assert circles(ROOT / 'mmprune') == []


def test_each_row_entry_exists():
    known = modules_of(ROOT / 'mmprune')
    missing = [
        entry
        for entry in RULES.layers
        if entry.removesuffix('/*') not in known
    ]
    assert missing == []


def test_the_layers_form_no_circle():
    order = list(RULES.allowed)
    for layer, allowed in RULES.allowed.items():
        below = order[: order.index(layer) + (layer == 'beside')]
        assert allowed - {OWN} <= set(below)


def test_the_document_names_only_paths_that_exist():
    cells = [row[0] for row in rows(DOC, 'path')]
    paths = re.findall('`([^`]+)`', ' '.join(cells))
    assert len(paths) > 15
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / 'mmprune' / path).exists()


@pytest.mark.parametrize(
    ('module', 'line', 'found'),
    [
        ('plan', 'from .surgery import apply_plan', 'surgery'),
        ('plan', 'from .cost import macs', 'cost'),
        ('masks', 'from . import surgery', 'surgery'),
        ('groups', 'def late():\n    import mmengine.runner', 'mmengine'),
        ('groups', 'import mmprune.plan', 'plan'),
        ('adapters/vit', 'from ..masks import mask_plan', 'masks'),
        ('adapters/vit', 'from .ffn import ffn_groups', 'adapters/ffn'),
        ('adapters/vit', 'from timm.models import x', 'timm'),
        ('adapters/vit', 'import torch_pruning', 'torch_pruning'),
        (
            'models/pruned',
            'from ..hooks.plan_hook import x',
            'hooks/plan_hook',
        ),
        ('checkpoints/reading', 'from mmprune.groups import Slice', 'groups'),
        ('models/pruned', 'from projects.VAD import vad', 'projects'),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, module, line, found):
    make_package(tmp_path, module, line)
    assert breaches(tmp_path, RULES) == [f'{module} imports {found}']


@pytest.mark.parametrize(
    ('module', 'line'),
    [
        ('surgery', 'from .plan import PruningPlan'),
        ('discovery/rules', 'from ..groups import Slice'),
        ('adapters/__init__', 'from .ffn import ffn_groups'),
        ('models/pruned', 'from .loading import build_model'),
        ('models/loading', 'from mmengine.config import Config'),
        ('plan', 'from .checkpoints.reading import load_checkpoint_file'),
        ('compat/__init__', 'from mmprune.compat import ops'),
    ],
)
def test_an_allowed_import_is_not_found(tmp_path, module, line):
    make_package(tmp_path, module, line)
    assert breaches(tmp_path, RULES) == []


def test_a_module_without_a_row_is_refused(tmp_path):
    make_package(tmp_path, 'stray', '')
    with pytest.raises(KeyError, match='stray is in no row'):
        breaches(tmp_path, RULES)


@pytest.mark.parametrize(
    ('lines', 'found'),
    [
        (dict(plan='import mmprune.cost', cost='from . import plan'), 2),
        (
            dict(
                plan='def late():\n    from .cost import macs',
                cost='from .masks import mask_plan',
                masks='if TYPE_CHECKING:\n    from .plan import Plan',
            ),
            3,
        ),
        (
            {
                'adapters/__init__': 'from .vit import vit_groups',
                'adapters/vit': 'from . import vit_groups',
            },
            2,
        ),
    ],
)
def test_a_circle_is_found_wherever_its_imports_stand(tmp_path, lines, found):
    for module, line in lines.items():
        make_package(tmp_path, module, line)
    (circle,) = circles(tmp_path)
    names = circle.split(' -> ')
    assert names[0] == names[-1] == min(names)
    assert {name.removesuffix('/__init__') for name in names} == {
        name.removesuffix('/__init__') for name in lines
    }
    assert len(names) == found + 1


def test_imports_in_one_direction_are_no_circle(tmp_path):
    make_package(tmp_path, 'plan', 'from . import cost, groups')
    make_package(tmp_path, 'cost', 'from .groups import Slice')
    make_package(tmp_path, 'adapters/__init__', 'from .vit import vit_groups')
    make_package(tmp_path, 'adapters/vit', 'from . import ffn')
    assert circles(tmp_path) == []


def make_package(folder: Path, module: str, line: str) -> None:
    """Writes a package of empty modules and one with an import."""
    for name in TREE.split():
        path = folder / f'{name}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / f'{module}.py').write_text(line + '\n')
