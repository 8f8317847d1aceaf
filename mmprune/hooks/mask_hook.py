"""What is zero when training starts stays zero."""

import re

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from ..groups import named_tensors
from ..masks import read_zeros
from ..packing import pack_masks, unpack_masks
from ..plan import PruningPlan, checkpoint_plan
from ..registry import HOOKS
from ..shards import gathered, shard_regions
from ..sparsifying.holding import (
    check_zeros,
    masking_in_training,
    model_in_training,
    sparse_weights,
    sparsity_of,
)
from ..sparsifying.masking import MASKS, add_masks


@HOOKS.register_module()
class MaskHook(Hook):
    """Trains a weight-sparse model and keeps its zeros.

    The masks are read from the zeros once, when a run starts from a pruned
    checkpoint; from then on they are explicit and saved with each
    checkpoint, one bit per weight, so a surviving weight that becomes
    exactly zero is not frozen by that. Weights, momentum and EMA stay
    sparse; gradients are masked before they are clipped or averaged.

    The sparsity is logged as ``train/sparsity``, counted anew every
    ``interval`` iterations; after training every pruned weight is asserted
    to be zero. Works on one device, under DDP, and on the parts of a
    ``mmprune.FullyShardedModel``.

    Args:
        names: Regular expressions on parameter names whose zeros are kept.
            By default those that the plan in the checkpoint calls sparse,
            without a plan the matrices of which at least 1% is zero.
        interval: Iterations between two counts of the zeros.
    """

    # Before EMAHook (NORMAL), which averages what is left here.
    priority = 'ABOVE_NORMAL'

    def __init__(
        self, names: str | list[str] | None = None, interval: int = 50
    ) -> None:
        self._patterns = [names] if isinstance(names, str) else names
        self._interval = interval
        self._packed: dict = {}
        self._plan: dict | None = None
        self._sparse: list[str] = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Takes the masks of the checkpoint, or the names of its zeros."""
        self._packed = checkpoint.get(MASKS, {})
        self._plan = checkpoint_plan(checkpoint)
        if self._plan is not None:
            self._sparse = list(PruningPlan.from_dict(self._plan).sparse)

    def before_train(self, runner: Runner) -> None:
        """Masks model, gradients, momentum and EMA.

        Raises:
            ValueError: If nothing says which weights are sparse, or a name
                fits no parameter.
        """
        masks, fills = unpack_masks(self._packed)
        if not masks:
            model = model_in_training(runner)
            found = read_zeros(model, self._names(model))
            masks = {name: gathered(mask) for name, mask in found.items()}
        # Whole on every rank: what a rank holds are parts.
        self._packed = pack_masks(masks, fills)
        self.masking = masking_in_training(runner)
        self.masking.hold(lambda model: shard_regions(model, masks, fills))
        total = sum(mask.numel() for mask in masks.values())
        zeros = total - sum(int(mask.sum()) for mask in masks.values())
        runner.logger.info(
            f'MaskHook keeps {zeros} of {total} weights in '
            f'{len(masks)} tensors at zero ({zeros / total:.2%})'
        )
        self._sparsity = sparsity_of(self.masking)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Zeroes again what an optimizer may have moved."""
        self.masking.apply()
        if self.every_n_train_iters(runner, self._interval):
            self._sparsity = sparsity_of(self.masking)
        runner.message_hub.update_scalar('train/sparsity', self._sparsity)

    def after_train(self, runner: Runner) -> None:
        """Lets go of the gradients.

        Raises:
            ValueError: If a pruned weight is not zero.
        """
        self.masking.release()
        check_zeros(self.masking)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the masks, and the plan that the run started from."""
        add_masks(checkpoint, *unpack_masks(self._packed))
        if self._plan is not None:
            checkpoint['meta'].setdefault('pruning_plan', self._plan)

    def _names(self, model: nn.Module) -> list[str]:
        if self._patterns is None:
            plan = getattr(model, 'pruning_plan', None)
            names = self._sparse or (list(plan.sparse) if plan else [])
            names = names or sparse_weights(model)
            if not names:
                raise ValueError(
                    'MaskHook: neither the checkpoint nor the model says '
                    'which weights are sparse, and none has zeros; load an '
                    "unstructured-pruned checkpoint, or give names='.*'"
                )
        else:
            names = _matching(model, self._patterns)
        missing = sorted(set(names) - named_tensors(model).keys())
        if missing:
            raise ValueError(
                f'MaskHook: the plan calls {missing[0]!r} sparse, the model '
                'has no such tensor; the plan belongs to another model'
            )
        return names


def _matching(model: nn.Module, patterns: list[str]) -> list[str]:
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f'MaskHook: names={pattern!r} matches no parameter; they '
                f'look like {", ".join(names[:3])}'
            )
    return [n for n in names if any(re.search(p, n) for p in patterns)]
