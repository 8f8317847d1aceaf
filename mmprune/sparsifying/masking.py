"""Holds regions of a model at zero: weights, gradients, momentum, EMA."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..masks import Region, clear, keep_masks, pack_masks, unpack_masks

MASKS = 'pruning_masks'


class Masking:
    """Keeps regions of a model at their fill while it trains.

    Pruned positions get no gradient, before any clipping and on every rank
    alike, so an optimizer leaves them where they are; :meth:`apply` makes
    that certain after each step.

    Args:
        model: The model itself, without a wrapper.
        optimizers: Those that train it.
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
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def hold(
        self,
        find: Callable[[nn.Module], Sequence[Region]],
        gradients: bool = True,
    ) -> None:
        """Takes new regions and clears them in everything there is.

        Args:
            find: Returns the regions in the model or a copy of it.
            gradients: Whether gradients have to be masked; not where a unit
                has zeros on both sides, so that none reaches it.
        """
        self.release()
        self.regions = list(find(self.model))
        clear(self.regions)
        for average in self._averages:
            clear(find(average))
        for region in self.regions:
            self._clear_state(region)
            if gradients and region.tensor.requires_grad:
                handle = region.tensor.register_hook(region.without)
                self._handles.append(handle)

    def apply(self) -> None:
        """Puts the held weights back to their fill."""
        clear(self.regions)

    def release(self) -> None:
        """Stops masking gradients, as at the end of a training."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def counts(self) -> tuple[int, int]:
        """Returns how many weights are held, and of how many."""
        masks = keep_masks(self.regions).values()
        total = sum(mask.numel() for mask in masks)
        return total - sum(int(mask.sum()) for mask in masks), total

    def save(self, checkpoint: dict) -> None:
        """Writes masks into a checkpoint, beside those of other hooks."""
        masks, fills = unpack_masks(checkpoint.get(MASKS, {}))
        for name, mask in keep_masks(self.regions).items():
            mask = mask.cpu()
            masks[name] = mask & masks[name] if name in masks else mask
        fills |= {region.name: region.fill for region in self.regions}
        checkpoint[MASKS] = pack_masks(masks, fills)

    @torch.no_grad()
    def _clear_state(self, region: Region) -> None:
        """Clears gradients so far and whatever an optimizer remembers."""
        tensor = region.tensor
        if tensor.grad is not None:
            tensor.grad = region.without(tensor.grad)
        for optimizer in self._optimizers:
            # Asking the defaultdict would give it an entry.
            state = dict(optimizer.state).get(tensor, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == tensor.shape:
                    state[key] = region.without(value)
