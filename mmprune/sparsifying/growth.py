"""What is pruned so far, what decays, and what is pruned next."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import broadcast
from torch import Tensor, nn

from ..groups import PruneGroup, named_tensors
from ..masks import Region, unit_regions, weight_regions
from ..packing import pack_masks, unpack_masks
from ..plan import PruningPlan
from ..statistics import Statistics

Chosen = dict[str, Tensor]


class Growth:
    """Prunes the same model further and further.

    Whether whole units or single weights are pruned, the state is one
    boolean mask per name: of a group ``[size]``, or of a tensor in its
    shape; true = pruned.

    Args:
        pruner: A ``StructuredPruner`` or ``WeightPruner``, which chooses;
            its sparsity is replaced at each :meth:`advance`.
        model: The model in training, dense in shape.
        groups: The groups whose units are pruned; or
        weights: names of the tensors whose single weights are.
        decay: Whether what is chosen stays alive at first: it is pruned when
            :meth:`finish_decay` says so.
        regrow: Whether pruned units compete again, with the weights that
            they would restart from.

    Attributes:
        pruned: What is pruned.
        decaying: What will be pruned next and may be pulled to zero now.

    Raises:
        ValueError: If nothing can be pruned.
    """

    def __init__(
        self,
        pruner: Any,
        model: nn.Module,
        groups: Sequence[PruneGroup] = (),
        *,
        weights: Sequence[str] = (),
        decay: bool = False,
        regrow: bool = False,
    ) -> None:
        self.pruner, self.model = pruner, model
        self.decay, self.regrow = decay, regrow
        self.groups: list[PruneGroup] = []
        if groups:
            self.groups = [g for g in pruner.targets(groups) if not g.dense]
            # Only those are left, and its patterns would match none of them.
            self.pruner = dataclasses.replace(pruner, protect=())
        tensors = named_tensors(model)
        sizes = {name: tensors[name].shape for name in weights}
        sizes |= {g.name: (g.size,) for g in self.groups}
        if not sizes:
            raise ValueError(
                f'nothing can be pruned: of {len(groups)} groups and '
                f'{len(weights)} tensors none is open; protect less'
            )
        self.pruned: Chosen = {
            name: torch.zeros(size, dtype=torch.bool)
            for name, size in sizes.items()
        }
        self.decaying: Chosen = _nothing(self.pruned)
        self.provenance: dict[str, Any] = {}
        self._protect = list(pruner.protect)

    @property
    def of_units(self) -> bool:
        """Whether units are pruned, and not single weights."""
        return bool(self.groups)

    @property
    def _units(self) -> dict[str, Any]:
        """What only a pruner of units is given."""
        return dict(groups=self.groups) if self.of_units else {}

    def check(self, sparsity: float | Mapping[str, float]) -> None:
        """Raises ``ValueError`` if a sparsity cannot be reached."""
        self._at(sparsity).check(self.model, **self._units)

    def calibrate(
        self,
        sparsity: float | Mapping[str, float],
        batches: Sequence[Any] = (),
        loss_fn: Any = None,
    ) -> Statistics:
        """Returns what the criterion needs to know for a sparsity."""
        pruner = self._at(sparsity)
        return pruner.calibrate(
            self.model, batches=batches, loss_fn=loss_fn, **self._units
        )

    def advance(
        self,
        sparsity: float | Mapping[str, float],
        stats: Statistics,
        restart: Statistics | None = None,
    ) -> None:
        """Prunes up to a sparsity; rank 0 decides for all.

        Nothing is written into the model: what holds :meth:`regions` does.

        Args:
            sparsity: Of all that was ever pruned, or one for each
                granularity.
            stats: What the criterion reads.
            restart: The same for the weights that units restart from, if
                they may grow again.
        """
        units = self._units
        if self.regrow:
            units['restart'] = restart
        chosen, self.provenance = self._at(sparsity).choose(
            self.model, self.pruned, stats, **units
        )
        self.provenance['protect'] = self._protect
        for name, mask in chosen.items():
            # Activations and gradients may differ from rank to rank.
            bits = mask.to(torch.uint8)
            broadcast(bits)
            chosen[name] = bits.bool()
        if not self.decay:
            self.pruned = chosen
            return
        old = self.pruned
        self.pruned = {name: m & old[name] for name, m in chosen.items()}
        self.decaying = {name: m & ~old[name] for name, m in chosen.items()}

    def finish_decay(self) -> None:
        """Prunes what was decaying."""
        self.pruned = {
            name: mask | self.decaying[name]
            for name, mask in self.pruned.items()
        }
        self.decaying = _nothing(self.decaying)

    def regions(
        self,
        model: nn.Module,
        chosen: Mapping[str, Tensor],
        consumers_only: bool = False,
    ) -> list[Region]:
        """Returns where something chosen lies in a model, or a copy of it."""
        if self.of_units:
            units = {n: m.nonzero().flatten() for n, m in chosen.items()}
            return unit_regions(model, self.groups, units, consumers_only)
        masks = {name: ~mask for name, mask in chosen.items() if mask.any()}
        return weight_regions(model, masks)

    def readers(self, model: nn.Module) -> list[Region]:
        """Returns what reads the pruned units, or the pruned weights."""
        return self.regions(model, self.pruned, consumers_only=True)

    def count(self) -> tuple[int, int]:
        """Returns how many units or weights are pruned, and of how many."""
        unscored = self.provenance.get('unscored', {})
        masks = [m for n, m in self.pruned.items() if n not in unscored]
        pruned = sum(int(mask.sum()) for mask in masks)
        return pruned, sum(mask.numel() for mask in masks)

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row per group or tensor: how much of it is pruned."""
        kinds = {g.name: g.granularity for g in self.groups}
        return [
            dict(
                group=name,
                granularity=kinds.get(name, 'weight'),
                units=mask.numel(),
                pruned=int(mask.sum()),
                decaying=int(self.decaying[name].sum()),
            )
            for name, mask in self.pruned.items()
        ]

    def plan(self, provenance: Mapping[str, Any] | None = None) -> PruningPlan:
        """Returns the plan of what is pruned.

        For units it removes them; for weights it calls tensors sparse.
        """
        provenance = {**self.provenance, **(provenance or {})}
        if self.of_units:
            return PruningPlan.of_masks(self.groups, self.pruned, provenance)
        some = [name for name, mask in self.pruned.items() if mask.any()]
        return PruningPlan((), {}, self.pruner.plan(some).sparse, provenance)

    def take_plan(self, plan: PruningPlan) -> None:
        """Goes on from units that a plan removes."""
        self.pruned = plan.masks(self.groups)
        self.provenance = dict(plan.provenance)

    def take_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Goes on from weights that masks (true = keep) have dropped."""
        for name in self.pruned.keys() & masks.keys():
            self.pruned[name] = ~masks[name].cpu()

    def state_dict(self) -> dict:
        """Returns plain data, safe under ``weights_only`` loading."""
        return dict(
            pruned=pack_masks(self.pruned),
            decaying=pack_masks(self.decaying),
            provenance=json.loads(json.dumps(self.provenance, default=str)),
        )

    def load_state_dict(self, state: Mapping) -> None:
        """Takes over what :meth:`state_dict` returned.

        Raises:
            ValueError: If it is the state of another model.
        """
        pruned, _ = unpack_masks(state['pruned'])
        decaying, _ = unpack_masks(state['decaying'])
        mine = {name: mask.shape for name, mask in self.pruned.items()}
        theirs = {name: mask.shape for name, mask in pruned.items()}
        if mine != theirs:
            differing = {
                name
                for name in {*mine, *theirs}
                if mine.get(name) != theirs.get(name)
            }
            raise ValueError(
                'the checkpoint prunes other groups or matrices than this '
                f'model has: {sorted(differing)[:4]}'
            )
        # In the order of the model, which decides between equal scores.
        self.pruned = {name: pruned[name] for name in mine}
        self.decaying = {name: decaying[name] for name in mine}
        self.provenance = dict(state.get('provenance', {}))

    def _at(self, sparsity: float | Mapping[str, float]) -> Any:
        if getattr(self.pruner, 'pattern', None) is not None:
            return self.pruner  # a pattern has one sparsity only
        return dataclasses.replace(self.pruner, sparsity=sparsity)


def _nothing(masks: Mapping[str, Tensor]) -> Chosen:
    return {name: torch.zeros_like(mask) for name, mask in masks.items()}
