"""Masks held over a whole training: weights, gradients, momentum, EMA."""

from collections.abc import Iterable

import torch
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from ..groups import named_tensors
from ..masks import fill_dropped, keep_zeros, pack_masks, unpack_masks

MASKS = 'pruning_masks'


class Masking:
    """Keeps the dropped weights of a model at their fill while it trains.

    Dropped positions get no gradient, before any clipping and on every rank
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
        self.masks: dict[str, Tensor] = {}
        self.fills: dict[str, float] = {}
        self._drop: dict[str, Tensor] = {}
        self._optimizers = list(optimizers)
        self._averages = list(averages)
        self._tensors = named_tensors(model)
        self._handles: dict[str, torch.utils.hooks.RemovableHandle] = {}

    def hold(
        self, masks: dict[str, Tensor], fills: dict[str, float] | None = None
    ) -> None:
        """Takes new masks and applies them to everything there is.

        Args:
            masks: Tensor name -> boolean mask of its shape, true = keep.
            fills: Tensor name -> what takes the place of zero.

        Raises:
            ValueError: If a mask does not fit the model.
        """
        self.masks, self.fills = dict(masks), dict(fills or {})
        for model in (self.model, *self._averages):
            keep_zeros(model, self.masks, self.fills)
        self._drop = {
            name: ~mask.to(self._tensors[name].device)
            for name, mask in self.masks.items()
        }
        for name, drop in self._drop.items():
            self._clear(self._tensors[name], drop)
            if name not in self._handles and self._tensors[name].requires_grad:
                self._handles[name] = self._tensors[name].register_hook(
                    lambda grad, name=name: self._masked(name, grad)
                )

    def apply(self) -> None:
        """Puts the dropped weights back to their fill."""
        fill_dropped(self._tensors, self._drop, self.fills)

    def release(self) -> None:
        """Lets go of the gradients, at the end of a training."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def _masked(self, name: str, grad: Tensor) -> Tensor:
        # Not a product: an overflown gradient under AMP times 0 is NaN.
        drop = self._drop.get(name)
        return grad if drop is None else grad.masked_fill(drop, 0)

    @torch.no_grad()
    def _clear(self, tensor: Tensor, drop: Tensor) -> None:
        """Clears gradients so far and whatever an optimizer remembers."""
        if tensor.grad is not None:
            tensor.grad.masked_fill_(drop, 0)
        for optimizer in self._optimizers:
            # Asking the defaultdict would give it an entry.
            for value in dict(optimizer.state).get(tensor, {}).values():
                if isinstance(value, Tensor) and value.shape == tensor.shape:
                    value.masked_fill_(drop, 0)


def masking_of(runner: Runner) -> Masking:
    """Returns an empty :class:`Masking` of what a Runner trains."""
    return Masking(
        plain_model(runner), optimizers_of(runner), averages_of(runner)
    )


def plain_model(runner: Runner) -> nn.Module:
    """Returns the model without its distributed wrapper.

    Raises:
        ValueError: If the wrapper splits the parameters over the ranks.
    """
    model = runner.model
    kinds = ' '.join(kind.__name__ for kind in type(model).__mro__)
    if 'FullyShardedDataParallel' in kinds or 'DeepSpeed' in kinds:
        raise ValueError(
            f'masks need whole parameters on every rank, and '
            f'{type(model).__name__} splits them; train with '
            'MMDistributedDataParallel'
        )
    return model.module if is_model_wrapper(model) else model


def optimizers_of(runner: Runner) -> list[Optimizer]:
    """Returns the optimizers of a Runner."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return [single.optimizer for single in wrapper.values()]
    return [wrapper.optimizer]


def averages_of(runner: Runner) -> list[nn.Module]:
    """Returns the averaged copies that EMA hooks keep."""
    return [
        hook.ema_model.module
        for hook in runner.hooks
        if isinstance(hook, EMAHook)
    ]


def save_masks(checkpoint: dict, masking: Masking) -> None:
    """Writes masks into a checkpoint, beside those of other hooks."""
    masks, fills = unpack_masks(checkpoint.get(MASKS, {}))
    for name, mask in masking.masks.items():
        mask = mask.cpu()
        masks[name] = mask & masks[name] if name in masks else mask
    checkpoint[MASKS] = pack_masks(masks, {**fills, **masking.fills})
