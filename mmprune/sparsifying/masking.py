"""Holds regions of a model at zero: weights, gradients, momentum, EMA."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from ..masks import Region, clear, keep_masks
from ..packing import pack_masks, unpack_masks

MASKS = 'pruning_masks'

# Each weight is stepped by its own gradient and its own state alone, so a
# zero without either stays an exact zero, weight decay or not. Muon, as an
# example, spreads the momentum of a matrix over all of it.
_ELEMENTWISE = {
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.NAdam,
    optim.RAdam,
    optim.Adamax,
    optim.Adagrad,
    optim.RMSprop,
}


class Masking:
    """Keeps regions of a model at their fill while it trains.

    Pruned positions get no gradient, before any clipping and on every rank
    alike, so PyTorch's optimizers leave zeros where they are; what another
    one may move, :meth:`apply` puts back after each step.

    Args:
        model: The model itself, without a wrapper.
        optimizers: Those that train it; without any, all is put back.
        averages: Averaged copies of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Iterable[Optimizer] = (),
        averages: Iterable[nn.Module] = (),
    ) -> None:
        self.model = model
        self.regions: list[Region] = []
        self._optimizers = list(optimizers)
        self._averages = list(averages)
        self._moved: list[Region] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def hold(
        self,
        find: Callable[[nn.Module], Sequence[Region]],
        producers_zero: bool = False,
    ) -> None:
        """Takes new regions and clears them in everything there is.

        Args:
            find: Returns the regions in the model or a copy of it.
            producers_zero: Whether the regions read units of which all that
                writes them is zero too, so that no input changes the units.
                Where their gradient is zero by itself it is left alone.
        """
        self.release()
        self.regions = list(find(self.model))
        clear(self.regions)
        for average in self._averages:
            clear(find(average))
        kinds = {type(optimizer) for optimizer in self._optimizers}
        resting = bool(kinds) and kinds <= _ELEMENTWISE
        self._moved.clear()
        for region in self.regions:
            self._clear_state(region)
            trained = region.tensor.requires_grad
            if trained:
                self._handles.append(_mask_gradient(region, producers_zero))
            # Weight decay moves a fill that is not zero; a buffer, or what
            # is frozen and may be thawed, has no gradient to mask.
            if not (resting and trained) or region.fill:
                self._moved.append(region)

    def apply(self) -> None:
        """Puts back what a step can have moved; for after each step."""
        clear(self._moved)

    def release(self) -> None:
        """Stops masking gradients, as at the end of a training."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def save(self, checkpoint: dict) -> None:
        """Writes masks into a checkpoint, beside those of other hooks."""
        fills = {region.name: region.fill for region in self.regions}
        add_masks(checkpoint, keep_masks(self.regions), fills)

    @torch.no_grad()
    def _clear_state(self, region: Region) -> None:
        """Clears gradients so far and whatever an optimizer remembers."""
        tensor = region.tensor
        if tensor.grad is not None:
            region.zero(tensor.grad)
        for optimizer in self._optimizers:
            # Asking the defaultdict would give it an entry.
            state = dict(optimizer.state).get(tensor, {})
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == tensor.shape:
                    region.zero(value)


def add_masks(
    checkpoint: dict, masks: Mapping[str, Tensor], fills: Mapping[str, float]
) -> None:
    """Writes masks into a checkpoint, beside those of other hooks."""
    known, filled = unpack_masks(checkpoint.get(MASKS, {}))
    for name, mask in masks.items():
        mask = mask.cpu()
        known[name] = mask & known[name] if name in known else mask
    checkpoint[MASKS] = pack_masks(known, {**filled, **fills})


def _mask_gradient(
    region: Region, constant: bool
) -> torch.utils.hooks.RemovableHandle:
    """Has the gradient of a region's tensor masked whenever it comes.

    Args:
        region: The region.
        constant: Whether its units have one value whatever the model is
            given: with a value of zero all gradients are zero in it.
    """
    zero_by_itself = False

    # Not the tensor's own hook: under FSDP2 it sees nothing, for the graph
    # holds the gathered parameter, and what it is given may be in use
    # elsewhere. This one comes before DDP and FSDP2 average, or just after.
    def mask(tensor: Tensor) -> None:
        nonlocal zero_by_itself
        if zero_by_itself:
            return
        if constant:
            # A gradient that is zero everywhere says nothing yet.
            outside = tensor.grad.masked_fill(region.inside, 0)
            zero_by_itself = bool(outside.any()) and torch.equal(
                outside, tensor.grad
            )
        region.zero(tensor.grad)

    return region.tensor.register_post_accumulate_grad_hook(mask)
