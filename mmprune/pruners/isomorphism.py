"""Which groups are made alike."""

from collections.abc import Mapping

from ..groups import PruneGroup


def structure(group: PruneGroup, kinds: Mapping[str, type]) -> tuple:
    """Returns what two groups share if they are the same sub-structure.

    That are the kinds of the layers that write and that read their units and
    the dimensions in which they do, whatever the sizes: the graphs of the
    groups are isomorphic. Fang et al., "Isomorphic Pruning for Vision
    Models", ECCV 2024.

    Args:
        group: The group.
        kinds: Module path -> class of the module.
    """
    sides = []
    for parts in (group.producers, group.consumers):
        found = []
        for part in parts:
            path, _, leaf = part.tensor.rpartition('.')
            kind = kinds.get(path, object).__name__
            found.append((kind, leaf, part.dim, part.copies))
        sides.append(tuple(sorted(found)))
    return group.granularity, *sides
