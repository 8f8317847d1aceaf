"""The tree of a model's modules, with what each of them lost."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

_DENSE = 'dense: '


@dataclass
class Node:
    """A module: its parameters before and after, and its children.

    Args:
        name: Path below the parent, ``transformer.encoder`` where only one
            child is listed.
        before: Parameters of the listed tensors in the dense model.
        after: Those that are left and not zero.
        notes: What a reader should know: kept units, why it stays dense.
        children: Biggest loss first; numbered ones in their order.
    """

    name: str
    before: int = 0
    after: int = 0
    notes: list[str] = field(default_factory=list)
    children: list['Node'] = field(default_factory=list)

    @property
    def kept(self) -> float:
        """Fraction of the parameters that is left."""
        return self.after / self.before if self.before else 1.0

    @property
    def whole(self) -> bool:
        """Whether nothing below it lost anything."""
        cut = any(not note.startswith(_DENSE) for note in self.notes)
        return (
            self.after == self.before
            and not cut
            and all(child.whole for child in self.children)
        )


def cut_tree(report: dict, key: str = 'modules') -> Node | None:
    """Returns the tree of a variant, or None if it lists no tensors.

    The rows of ``report['tensors']`` (all tensors, see
    :func:`mmprune.removed.tensor_rows`) make it complete; without them it
    shows what lost something and what no group covers.

    Args:
        report: The tables about a variant, as ``report.json`` has them.
        key: ``modules`` for removed units, ``weights`` for zeros.
    """
    rows = report.get(key) or []
    if not rows:
        return None
    tensors = {}
    for row in rows:
        before = math.prod(row['dense_shape'])
        left = round(before * (1 - row['sparsity']))
        tensors[row['tensor']] = (before, left)
    if key == 'modules':
        for row in report.get('uncovered') or []:
            whole = (row['params'], row['params'])
            tensors.setdefault(row['tensor'], whole)
        if report.get('tensors'):
            tensors = {
                row['tensor']: (row['params'], row['left'])
                for row in report['tensors']
            }
    root = Node('')
    for name, (before, after) in tensors.items():
        for node in _path(root, name.split('.')[:-1]):
            node.before += before
            node.after += after
    if key == 'modules':
        _add_notes(root, report)
    _arrange(root)
    return root


def _path(root: Node, parts: Iterable[str]) -> Iterable[Node]:
    """Yields the nodes from the root on, made where they are missing."""
    node = root
    yield node
    for part in parts:
        child = next((c for c in node.children if c.name == part), None)
        if child is None:
            child = Node(part)
            node.children.append(child)
        node = child
        yield node


def _add_notes(root: Node, report: dict) -> None:
    for row in report.get('groups') or []:
        *_, node = _path(root, row['group'].split('.'))
        kinds = f'{row["granularity"]}s'
        if row['dense_because']:
            node.notes.append(f'{_DENSE}{row["dense_because"]}')
        else:
            node.notes.append(f'{row["kept"]} of {row["units"]} {kinds}')
    for row in report.get('uncovered') or []:
        *_, node = _path(root, row['tensor'].split('.')[:-1])
        if not node.notes:
            node.notes.append(f'{_DENSE}{row["dense_because"]}')


def _arrange(node: Node) -> None:
    """Joins chains of only children and sorts, in place."""
    for child in node.children:
        while len(child.children) == 1 and not child.notes:
            (only,) = child.children
            if (only.before, only.after) != (child.before, child.after):
                break
            child.name = f'{child.name}.{only.name}'
            child.notes, child.children = only.notes, only.children
        _arrange(child)
    if not all(c.name.split('.')[0].isdigit() for c in node.children):
        node.children.sort(key=lambda c: (c.after - c.before, -c.before))
