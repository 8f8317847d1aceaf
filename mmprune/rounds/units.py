"""Which whole units are gone, which go next, and where they lie."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..allocation import keep_after, removal_order
from ..groups import PruneGroup, named_tensors, unit_elements
from ..plan import PruningPlan
from .arithmetic import num_gone, units_of_elements
from .options import RoundOptions
from .regions import Region, unit_regions
from .scores import element_mask

Units = dict[str, list[int]]


class UnitRounds:
    """Heads and neurons over the rounds.

    Args:
        groups: Groups of the dense model; dense ones and those that are no
            target are left out.
        options: What is pruned when.

    Attributes:
        gone: Group name -> units that are zero.
        going: Group name -> units that RSST pulls to zero now.

    Raises:
        ValueError: If no group is a target, or a ratio leaves too little.
    """

    def __init__(
        self, groups: Sequence[PruneGroup], options: RoundOptions
    ) -> None:
        self.options = options
        self.groups = [
            g for g in groups if not g.dense and options.targets(g.granularity)
        ]
        if not self.groups:
            raise ValueError(
                f'vit_prune_target={options.vit_prune_target!r} fits none of '
                f'the {len(groups)} groups of the model'
            )
        found = {g.granularity for g in self.groups} & {'head', 'neuron'}
        if options.vit_prune_target == 'both' and len(found) == 1:
            target = 'head' if found == {'head'} else 'mlp'
            raise ValueError(
                f"vit_prune_target='both', but only {found.pop()}s of the "
                f'model can be pruned; set vit_prune_target={target!r}'
            )
        self.gone: Units = {g.name: [] for g in self.groups}
        self.going: Units = {g.name: [] for g in self.groups}
        self._check_reachable()

    @property
    def kinds(self) -> dict[str, list[PruneGroup]]:
        """Granularity -> groups; units of one granularity compete."""
        kinds = defaultdict(list)
        for group in self.groups:
            kinds[group.granularity].append(group)
        return dict(kinds)

    def choose(
        self, model: nn.Module, scores: dict[str, Tensor], event: int
    ) -> Units:
        """Returns all units that are to be gone after an event.

        Args:
            model: The trained model; ``unit_counts='elements'`` looks at it.
            scores: Group name -> score ``[size]``, high = keep.
            event: Number of the event, from 1.
        """
        chosen: Units = {}
        for kind, groups in self.kinds.items():
            for part, count in self._parts(model, kind, groups, event):
                ranked = {g.name: self._ranked(g, scores) for g in part}
                order = removal_order(
                    ranked, min_keep=self.options.min_keep(kind)
                )
                keep = keep_after(ranked, order[:count])
                for group in part:
                    stay = set(keep[group.name])
                    chosen[group.name] = [
                        i for i in range(group.size) if i not in stay
                    ]
        return chosen

    def _ranked(self, group: PruneGroup, scores: dict[str, Tensor]) -> Tensor:
        score = scores[group.name].clone()
        if not self.options.allow_regrowth:
            # What is gone goes first again; a registered criterion may give
            # negative scores to others.
            score[self.gone[group.name]] = torch.finfo(score.dtype).min
        return score

    def _parts(
        self,
        model: nn.Module,
        kind: str,
        groups: list[PruneGroup],
        event: int,
    ) -> list[tuple[list[PruneGroup], int]]:
        """Groups that compete, with the number of units gone in them."""
        options = self.options
        sparsity = options.sparsity(kind, event)
        fill, least = options.fillback_rate, options.min_keep(kind)
        if options.unit_counts == 'elements':
            keep = element_mask(model, groups, sparsity)
            return [
                ([g], g.size - self._filled(model, g, keep, least))
                for g in groups
            ]
        if options.sorting_mode == 'layer-wise':
            return [
                ([g], min(num_gone(sparsity, g.size, fill), g.size - least))
                for g in groups
            ]
        total = sum(g.size for g in groups)
        return [(groups, num_gone(sparsity, total, fill))]

    def _filled(
        self,
        model: nn.Module,
        group: PruneGroup,
        keep: dict[str, Tensor],
        least: int,
    ) -> int:
        """Units that the alive elements of the writing matrices fill."""
        parts = [p for p in group.producers if p.tensor in keep]
        tensors = named_tensors(model)
        per_unit = sum(
            unit_elements(tensors[p.tensor].shape, p) for p in parts
        )
        alive = sum(int(keep[p.tensor].sum()) for p in parts)
        kept = units_of_elements(
            alive, per_unit, group.size, self.options.fillback_rate
        )
        most = group.size - len(self.gone[group.name])
        if self.options.allow_regrowth:
            most = group.size
        return max(least, min(kept, most))

    def begin(self, chosen: Units) -> None:
        """Starts a round: with RSST the new ones stay alive in it."""
        if self.options.struct == 'refill':
            self.gone = chosen
            return
        old = {name: set(units) for name, units in self.gone.items()}
        self.gone = {
            name: [i for i in units if i in old[name]]
            for name, units in chosen.items()
        }
        self.going = {
            name: [i for i in units if i not in old[name]]
            for name, units in chosen.items()
        }

    def end(self) -> None:
        """Ends a round: what was going is gone."""
        self.gone = {
            name: sorted({*units, *self.going[name]})
            for name, units in self.gone.items()
        }
        self.going = {name: [] for name in self.going}

    def regions(
        self, model: nn.Module, which: str, consumers_only: bool = False
    ) -> list[Region]:
        """Returns where ``gone`` or ``going`` units lie in a model."""
        units = getattr(self, which)
        return unit_regions(model, self.groups, units, consumers_only)

    def held(self, model: nn.Module) -> list[Region]:
        """Returns what has to be cleared again after every step."""
        return self.regions(model, 'gone', consumers_only=True)

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row per group: units, how many are gone, and going."""
        return [
            dict(
                group=g.name,
                granularity=g.granularity,
                units=g.size,
                gone=len(self.gone[g.name]),
                going=len(self.going[g.name]),
            )
            for g in self.groups
        ]

    def plan(self, provenance: dict | None = None) -> PruningPlan:
        """Returns the plan that removes what is gone."""
        groups = tuple(g for g in self.groups if self.gone[g.name])
        keep = {}
        for group in groups:
            gone = set(self.gone[group.name])
            keep[group.name] = [i for i in range(group.size) if i not in gone]
        return PruningPlan(groups, keep, provenance=provenance or {})

    def state_dict(self) -> dict:
        """Returns plain data, safe under ``weights_only`` loading."""
        return dict(
            gone={k: list(v) for k, v in self.gone.items()},
            going={k: list(v) for k, v in self.going.items()},
        )

    def load_state_dict(self, state: dict) -> None:
        """Takes over what :meth:`state_dict` returned.

        Raises:
            ValueError: If it is the state of another model.
        """
        if set(state['gone']) != set(self.gone):
            raise ValueError(
                'the checkpoint prunes other groups than this model has: '
                f'{sorted(set(state["gone"]) ^ set(self.gone))[:4]}'
            )
        self.gone = {k: list(v) for k, v in state['gone'].items()}
        self.going = {k: list(v) for k, v in state['going'].items()}

    def _check_reachable(self) -> None:
        options = self.options
        if options.sorting_mode == 'layer-wise' or (
            options.unit_counts == 'elements'
        ):
            return  # a layer then keeps its least, whatever the ratio
        for kind, groups in self.kinds.items():
            if not options.events:
                continue
            total = sum(g.size for g in groups)
            gone = num_gone(
                options.sparsity(kind, options.events),
                total,
                options.fillback_rate,
            )
            least = options.min_keep(kind) * len(groups)
            if total - gone < least:
                raise ValueError(
                    f'{kind}s: {gone} of {total} would go, but '
                    f'{options.min_keep(kind)} in each of {len(groups)} '
                    f'layers have to stay, {least} in all; lower '
                    f'{"mlp_prune_ratio" if kind == "neuron" else "rate"} '
                    'or the least number per layer'
                )
