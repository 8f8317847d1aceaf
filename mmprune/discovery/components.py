"""From tied positions to groups of units that a plan can express."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from ..groups import PruneGroup, Slice, named_tensors
from .labels import Labels

# A tensor and one of its dimensions.
Place = tuple[str, int]
# How modules call their number of heads, and the width of all of them.
_HEADS = ('num_heads', 'num_attention_heads', 'n_heads', 'heads')
_WIDTHS = ('attn_dim', 'all_head_size', 'inner_dim')


def groups_of(labels: Labels, model: nn.Module) -> Iterator[PruneGroup]:
    """Yields the groups that the ties make, in the order of the model.

    Units that lie in the same dimensions of the same tensors, with as many
    positions in each, are one group.

    Args:
        labels: What a run of the model has left.
        model: The model.
    """
    if labels.broadcasts:
        component = _components(labels, labels.ties)
        held = np.zeros(labels.total, bool)
        for atoms, _ in labels.fixed:
            held[component[atoms.numpy()]] = True
        labels.settle_broadcasts(
            lambda atoms: held[component[atoms.numpy()]].all()
        )
    ties = list(labels.ties)
    component = _components(labels, ties)
    for further in (_split_ties, _shared_number_ties):
        more = further(labels, component)
        if more:
            ties += more
            component = _components(labels, ties)
    reads = _flagged(labels.read, labels.total)
    mixed = set(component[_flagged(labels.mixed, labels.total)].tolist())
    why: dict[int, str] = {}
    for atoms, reason in labels.fixed:
        for unit in np.unique(component[atoms.numpy()]).tolist():
            why.setdefault(unit, reason)
    readers = _reading_places(labels, reads)
    tensors = named_tensors(model)
    order = {name: i for i, name in enumerate(tensors)}
    units = _units(labels, component)
    alike: dict[tuple, list[int]] = defaultdict(list)
    for key, places in units.items():
        if not any(place not in readers for place in places):
            continue  # read, and written by nothing: the model's input
        signature = tuple(
            (place, len(places[place])) for place in sorted(places)
        )
        alike[(signature, why.get(key, ''))].append(key)
    counts = _counts(labels, component)
    found = []
    for (_, reason), keys in alike.items():
        group = _group(
            [units[k] for k in keys], readers, tensors, order, reason
        )
        if group is None:
            continue
        granularity = 'head' if mixed & set(keys) else group.granularity
        attrs, clash = _attrs(counts, keys)
        if granularity == 'head':
            attrs |= _head_attrs(group, model)
        found.append(
            PruneGroup(
                group.name,
                granularity,
                group.size,
                group.producers,
                group.consumers,
                attrs,
                group.dense or clash,
            )
        )
    found.sort(key=lambda g: order[g.producers[0].tensor])
    yield from _named(_without_shared_attrs(found))


def _without_shared_attrs(groups: list[PruneGroup]) -> Iterator[PruneGroup]:
    """The groups, without attributes that several of them would set.

    One number of heads for several attentions (Mask2Former's head holds one)
    cannot follow each of them; whose run breaks by that, a check tells.
    """
    claims = Counter(path for group in groups for path in group.attrs)
    for group in groups:
        own = {p: n for p, n in group.attrs.items() if claims[p] == 1}
        yield replace(group, attrs=own)


def _components(labels: Labels, ties: list[Tensor]) -> np.ndarray:
    """Returns the component of every atom, ``[total]``."""
    size = labels.total
    if ties:
        rows, columns = torch.cat(ties, 1).numpy()
    else:
        rows = columns = np.zeros(0, int)
    graph = coo_matrix(
        (np.ones(len(rows), bool), (rows, columns)), (size,) * 2
    )
    return connected_components(graph, directed=False)[1]


def _split_ties(labels: Labels, component: np.ndarray) -> list[Tensor]:
    """Ties that keep a dimension rectangular which the model splits in two.

    Rows may go as a whole (heads). Where they do not, as in a channel
    shuffle, every row has to lose the same columns.
    """
    ties = []
    for rows in labels.splits:
        found = component[rows.numpy()]
        if (found == found[:, :1]).all() or not rows.any():
            continue
        first = rows[:1].expand_as(rows)
        both = (rows != 0) & (first != 0)
        ties.append(torch.stack([first[both], rows[both]]))
    return ties


def _flagged(parts: list[Tensor], total: int) -> np.ndarray:
    flags = np.zeros(total, bool)
    for atoms in parts:
        flags[atoms.numpy()] = True
    flags[0] = False
    return flags


def _reading_places(labels: Labels, reads: np.ndarray) -> set[Place]:
    starts = [*labels.starts, labels.total]
    return {
        place
        for i, place in enumerate(labels.names)
        if reads[starts[i] : starts[i + 1]].any()
    }


def _units(
    labels: Labels, component: np.ndarray
) -> dict[int, dict[Place, list[int]]]:
    """Component -> where its positions lie; those of one position left out."""
    sizes = np.bincount(component)
    units: dict[int, dict[Place, list[int]]] = defaultdict(dict)
    starts = [*labels.starts, labels.total]
    for i, place in enumerate(labels.names):
        row = component[starts[i] : starts[i + 1]]
        for position, unit in enumerate(row.tolist()):
            if sizes[unit] > 1:
                units[unit].setdefault(place, []).append(position)
    return units


def _group(
    units: list[dict[Place, list[int]]],
    readers: set[Place],
    tensors: Mapping[str, Tensor],
    order: Mapping[str, int],
    dense: str,
) -> PruneGroup | None:
    """Returns the units as one group; ``None`` if no matrix writes them."""
    written = sorted(
        (place for place in units[0] if place not in readers),
        key=lambda place: (order[place[0]], place[1]),
    )
    # A buffer makes nothing: the mean of a picture is tied to its colours.
    matrices = [
        place
        for place in written
        if tensors[place[0]].ndim > 1
        and isinstance(tensors[place[0]], nn.Parameter)
    ]
    if not matrices:
        return None
    main = matrices[0]
    units = sorted(units, key=lambda unit: unit[main][0])
    slices = {
        place: _slices(place, [unit[place] for unit in units])
        for place in units[0]
    }
    read = sorted(
        (place for place in units[0] if place in readers),
        key=lambda place: (order[place[0]], place[1]),
    )
    if not read:
        dense = dense or 'the channels are an output of the model'
    if len(units) == 1:
        dense = dense or 'every group keeps a unit, and this has one only'
    wide = any(tensors[name].ndim > 2 for name, _ in written + read)
    return PruneGroup(
        name=main[0].rpartition('.')[0] or main[0],
        granularity='channel' if wide else 'neuron',
        size=len(units),
        producers=tuple(s for place in written for s in slices[place]),
        consumers=tuple(s for place in read for s in slices[place]),
        dense=dense,
    )


def _slices(place: Place, owned: list[list[int]]) -> tuple[Slice, ...]:
    """Returns slices in which unit ``i`` has the positions ``owned[i]``."""
    size, runs = len(owned), [[owned[0][0]]]
    for position in owned[0][1:]:
        # Neighbouring positions are a block (a flattened map, a head), each
        # further run is a copy elsewhere (a concatenation).
        if position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    parts = [Slice(*place, block=len(run), offset=run[0]) for run in runs]
    found = torch.cat(
        [part.index(range(size), size).view(size, -1) for part in parts], 1
    )
    if found.sort(1).values.tolist() == owned:
        return tuple(parts)
    positions = tuple(position for unit in owned for position in unit)
    return (Slice(*place, block=len(owned[0]), positions=positions),)


def _counts(
    labels: Labels, component: np.ndarray
) -> dict[str, dict[int, int]]:
    """Attribute -> component -> how much of it the component holds."""
    counts = {}
    views = dict(_counted_views(labels, component))
    for path, atoms in {**views, **labels.counts}.items():
        units, number = np.unique(component[atoms.numpy()], return_counts=True)
        counts[path] = dict(zip(units.tolist(), number.tolist(), strict=True))
    return counts


def _counted_views(
    labels: Labels, component: np.ndarray
) -> Iterator[tuple[str, Tensor]]:
    """Attributes by which a model views channels, with an atom of each.

    Of a view as heads and what is in them, one number follows the units: the
    one along which units differ, and across which they do not.
    """
    for path, lines in labels.views:
        rows = component[lines.numpy()]
        _, number = np.unique(rows[:, 0], return_counts=True)
        if (rows == rows[:, :1]).all() and (number == number[0]).all():
            yield path, lines[:, 0]


def _shared_number_ties(labels: Labels, component: np.ndarray) -> list[Tensor]:
    """Ties of what is viewed by the same number: it has one value."""
    first: dict[str, Tensor] = {}
    ties = []
    for path, atoms in _counted_views(labels, component):
        other = first.setdefault(path, atoms)
        if len(other) == len(atoms) and not torch.equal(other, atoms):
            ties.append(torch.stack([other, atoms]))
    return ties


def _attrs(
    counts: dict[str, dict[int, int]], keys: list[int]
) -> tuple[dict[str, int], str]:
    """Returns what one unit adds to attributes, and why it cannot be told."""
    attrs = {}
    for path, units in counts.items():
        shares = {units.get(key, 0) for key in keys}
        if shares == {0}:
            continue
        if len(shares) > 1 or len(units) != len(keys):
            return {}, f'{path} is counted by several groups of units'
        attrs[path] = shares.pop()
    return attrs, ''


def _head_attrs(group: PruneGroup, model: nn.Module) -> dict[str, int]:
    """What modules around the projections hold: heads, and their width."""
    attrs = {}
    first = group.producers[0]
    width = first.block
    for part in group.producers:
        path = part.tensor.rpartition('.')[0]
        while path:
            module = model.get_submodule(path)
            for names, size in ((_HEADS, 1), (_WIDTHS, width)):
                for name in names:
                    if vars(module).get(name) == group.size * size:
                        attrs[f'{path}.{name}'] = size
            path = path.rpartition('.')[0]
    return attrs


def _named(groups: list[PruneGroup]) -> Iterator[PruneGroup]:
    """The groups, each under a name of its own."""
    taken: dict[str, int] = {}
    for group in groups:
        number = taken[group.name] = taken.get(group.name, 0) + 1
        name = group.name if number == 1 else f'{group.name} ({number})'
        yield replace(group, name=name)
