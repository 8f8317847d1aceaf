"""The result of all thinking: which units stay, as plain data."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from .atomic_file import write_whole
from .checkpoints.reading import checkpoint_plan, load_checkpoint_file
from .groups import PruneGroup, Slice

_VERSION = 1
# What it is called in the folder of a model.
FOLDER_PLAN = 'pruning_plan.json'


@dataclass(frozen=True)
class PruningPlan:
    """Which units of which groups stay, and which weights are sparse.

    Args:
        groups: The groups that lose units.
        keep: Group name -> sorted indices of the units that stay, counted in
            the dense model.
        sparse: Tensor name -> pattern of its zeros (``'unstructured'``,
            ``'2:4'``); the zeros themselves are in the weights.
        provenance: How the plan came about; only for people to read.

    Raises:
        ValueError: If ``keep`` does not fit the groups.
    """

    groups: tuple[PruneGroup, ...]
    keep: dict[str, list[int]]
    sparse: dict[str, str] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [g.name for g in self.groups]
        if len(set(names)) != len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise ValueError(f'group names must be unique, {twice} are not')
        if set(names) != set(self.keep):
            raise ValueError(
                'a plan needs one list of kept units per group; without one: '
                f'{sorted(set(names) - set(self.keep))[:5]}, without a '
                f'group: {sorted(set(self.keep) - set(names))[:5]}'
            )
        for group in self.groups:
            _check_keep(group, self.keep[group.name])

    def removed(self, group: PruneGroup) -> list[int]:
        """Returns the sorted units that ``group`` loses."""
        keep = set(self.keep[group.name])
        return [i for i in range(group.size) if i not in keep]

    @classmethod
    def of_masks(
        cls,
        groups: Iterable[PruneGroup],
        pruned: Mapping[str, Tensor],
        provenance: Mapping | None = None,
    ) -> 'PruningPlan':
        """Returns the plan that prunes what masks of units ``[size]`` name."""
        groups = tuple(g for g in groups if pruned[g.name].any())
        keep = {
            g.name: (~pruned[g.name]).nonzero().flatten().tolist()
            for g in groups
        }
        return cls(groups, keep, provenance=dict(provenance or {}))

    def masks(self, groups: Iterable[PruneGroup]) -> dict[str, Tensor]:
        """Returns the masks that :meth:`of_masks` takes."""
        pruned = {g.name: torch.zeros(g.size) > 0 for g in groups}
        for group in self.groups:
            if group.name in pruned:
                pruned[group.name][self.removed(group)] = True
        return pruned

    def to_dict(self) -> dict:
        """Returns plain containers, safe under ``weights_only`` loading."""
        return dict(
            version=_VERSION,
            groups=[_plain_group(g) for g in self.groups],
            keep={name: list(units) for name, units in self.keep.items()},
            sparse=dict(self.sparse),
            provenance=dict(self.provenance),
        )

    @classmethod
    def from_dict(cls, data: Mapping) -> 'PruningPlan':
        """Returns the plan that :meth:`to_dict` described.

        Raises:
            ValueError: If the data is no plan, or of a newer version.
        """
        if not isinstance(data, Mapping) or 'groups' not in data:
            raise ValueError(
                'not a pruning plan: a mapping with `groups` and `keep` is '
                f'expected, found {type(data).__name__}'
            )
        if data.get('version', _VERSION) > _VERSION:
            raise ValueError(
                f'the plan has version {data["version"]}, this mmprune reads '
                f'up to {_VERSION}; update mmprune'
            )
        return cls(
            groups=tuple(_group(g) for g in data['groups']),
            keep={k: [int(i) for i in v] for k, v in data['keep'].items()},
            sparse=dict(data.get('sparse', {})),
            provenance=dict(data.get('provenance', {})),
        )

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON, whole or not at all."""
        write_whole(path, self.to_json().encode())

    def to_json(self) -> str:
        """Returns what is in ``plan.json``, and in pruned checkpoints."""
        return json.dumps(self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> 'PruningPlan':
        """Reads a plan from ``.json``, a model folder or a checkpoint.

        Raises:
            ValueError: If there is no plan in the file.
        """
        path = Path(path)
        if path.is_dir():
            path = path / FOLDER_PLAN
        if path.suffix != '.json':
            return cls.from_checkpoint(load_checkpoint_file(path), path)
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise ValueError(f'no plan at {path}') from error
        except json.JSONDecodeError as error:
            raise ValueError(f'{path} is not JSON: {error}') from error

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Mapping, path: str | Path = 'the checkpoint'
    ) -> 'PruningPlan':
        """Returns the plan that a loaded checkpoint carries.

        Raises:
            ValueError: If it carries none.
        """
        data = checkpoint_plan(checkpoint)
        if data is None:
            raise ValueError(
                f'{path} carries no pruning plan (meta.pruning_plan); give '
                'the checkpoint that mmprune wrote, or its plan.json'
            )
        return cls.from_dict(data)


def _plain_group(group: PruneGroup) -> dict:
    """A group as plain containers; defaults are left out."""
    return dict(
        name=group.name,
        granularity=group.granularity,
        size=group.size,
        producers=[_plain_slice(s) for s in group.producers],
        consumers=[_plain_slice(s) for s in group.consumers],
        attrs=dict(group.attrs),
    )


def _plain_slice(part: Slice) -> dict:
    plain = {
        f.name: getattr(part, f.name)
        for f in fields(part)
        if getattr(part, f.name) != f.default
    }
    if part.positions:
        plain['positions'] = list(part.positions)
    return plain


def _group(data: dict) -> PruneGroup:
    try:
        sides = {
            side: tuple(_slice(s) for s in data[side])
            for side in ('producers', 'consumers')
        }
        return PruneGroup(**{**data, **sides})
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'not a pruning group: {json.dumps(data, default=str)[:200]} '
            f'({error}); was the plan written by another version?'
        ) from error


def _slice(data: dict) -> Slice:
    return Slice(**{**data, 'positions': tuple(data.get('positions', ()))})


def _check_keep(group: PruneGroup, keep: list[int]) -> None:
    if not keep and group.granularity != 'layer':
        raise ValueError(f'group {group.name!r} would lose all its units')
    if sorted(set(keep)) != list(keep):
        raise ValueError(
            f'group {group.name!r}: kept units must be sorted and unique'
        )
    if keep and (keep[0] < 0 or keep[-1] >= group.size):
        raise ValueError(
            f'group {group.name!r}: kept unit {keep[-1]} is outside the '
            f'{group.size} units of the dense model'
        )
