"""Which single weights are gone, and which go next."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..allocation import lowest
from ..groups import PruneGroup, named_tensors
from ..plan import PruningPlan
from .arithmetic import num_gone
from .options import RoundOptions
from .regions import Region, WeightRegion
from .scores import matrix_names

Masks = dict[str, Tensor]


class WeightRounds:
    """Elements of matrices over the rounds.

    Args:
        groups: Groups of the dense model; their matrices are pruned, as the
            patch embedding and the classifier are not.
        options: What is pruned when.
        model: The dense model, for the shapes.

    Attributes:
        gone: Tensor name -> true where a weight is zero.
        going: Tensor name -> true where RSST pulls it to zero now.
    """

    def __init__(
        self,
        groups: Sequence[PruneGroup],
        options: RoundOptions,
        model: nn.Module,
    ) -> None:
        self.options = options
        tensors = named_tensors(model)
        names = matrix_names(groups, tensors)
        if not names:
            raise ValueError('the model has no matrix to prune')
        self.gone: Masks = {
            name: torch.zeros(tensors[name].shape, dtype=torch.bool)
            for name in names
        }
        self.going: Masks = {k: m.clone() for k, m in self.gone.items()}

    @torch.no_grad()
    def choose(self, model: nn.Module, scores: Any, event: int) -> Masks:
        """Returns the weights that are to be gone after an event.

        Args:
            model: The trained model.
            scores: Not used: single weights go by magnitude.
            event: Number of the event, from 1.
        """
        tensors = named_tensors(model)
        sizes = {}
        for name, gone in self.gone.items():
            size = tensors[name].detach().abs().float().cpu()
            if not self.options.allow_regrowth:
                size = size.masked_fill(gone, -1)
            sizes[name] = size
        sparsity = self.options.sparsity('weight', event)
        if self.options.sorting_mode == 'layer-wise':
            parts = [[name] for name in sizes]
        else:
            parts = [list(sizes)]
        chosen = {}
        for names in parts:
            values = torch.cat([sizes[n].flatten() for n in names])
            mask = lowest(values, num_gone(sparsity, len(values)))
            split = mask.split([sizes[n].numel() for n in names])
            for name, piece in zip(names, split, strict=True):
                chosen[name] = piece.view(sizes[name].shape)
        return chosen

    def begin(self, chosen: Masks) -> None:
        """Starts a round: with RSST the new ones stay alive in it."""
        if self.options.struct == 'refill':
            self.gone = chosen
            return
        self.going = {k: m & ~self.gone[k] for k, m in chosen.items()}
        self.gone = {k: m & self.gone[k] for k, m in chosen.items()}

    def end(self) -> None:
        """Ends a round: what was going is gone."""
        self.gone = {k: m | self.going[k] for k, m in self.gone.items()}
        self.going = {k: torch.zeros_like(m) for k, m in self.going.items()}

    def regions(
        self, model: nn.Module, which: str, consumers_only: bool = False
    ) -> list[Region]:
        """Returns where ``gone`` or ``going`` weights lie in a model."""
        tensors = named_tensors(model)
        return [
            WeightRegion(tensors[name], mask.to(tensors[name].device))
            for name, mask in getattr(self, which).items()
            if mask.any()
        ]

    def held(self, model: nn.Module) -> list[Region]:
        """Returns what has to be cleared again after every step."""
        return self.regions(model, 'gone')

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row per matrix: weights, how many gone, and going."""
        return [
            dict(
                group=name,
                granularity='weight',
                units=mask.numel(),
                gone=int(mask.sum()),
                going=int(self.going[name].sum()),
            )
            for name, mask in self.gone.items()
        ]

    def plan(self, provenance: dict | None = None) -> PruningPlan:
        """Returns a plan that names the sparse tensors and cuts nothing."""
        sparse = [name for name, mask in self.gone.items() if mask.any()]
        return PruningPlan(
            groups=(),
            keep={},
            sparse=dict.fromkeys(sparse, 'unstructured'),
            provenance=provenance or {},
        )

    def state_dict(self) -> dict:
        """Returns the masks, one bit per weight."""
        return dict(
            gone={k: _packed(m) for k, m in self.gone.items()},
            going={k: _packed(m) for k, m in self.going.items()},
        )

    def load_state_dict(self, state: dict) -> None:
        """Takes over what :meth:`state_dict` returned.

        Raises:
            ValueError: If it is the state of another model.
        """
        if set(state['gone']) != set(self.gone):
            raise ValueError(
                'the checkpoint prunes other matrices than this model has: '
                f'{sorted(set(state["gone"]) ^ set(self.gone))[:4]}'
            )
        for which in ('gone', 'going'):
            masks = getattr(self, which)
            for name, bits in state[which].items():
                masks[name] = _unpacked(bits, masks[name].shape)


def _packed(mask: Tensor) -> Tensor:
    """Eight weights to a byte, the first in the lowest bit."""
    bits = torch.nn.functional.pad(mask.flatten(), (0, -mask.numel() % 8))
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    return (bits.view(-1, 8) * weights).sum(1, dtype=torch.uint8)


def _unpacked(packed: Tensor, shape: torch.Size) -> Tensor:
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    bits = (packed.cpu()[:, None] & weights) != 0
    return bits.flatten()[: shape.numel()].view(shape)
