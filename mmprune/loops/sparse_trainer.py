"""transformers' Trainer for a pruned model that keeps its zeros."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from ..atomic_file import save_checkpoint
from ..checkpoints.reading import load_checkpoint_file
from ..masks import read_zeros, weight_regions
from ..packing import pack_masks, unpack_masks
from ..sparsifying.holding import check_zeros, sparse_weights, sparsity_of
from ..sparsifying.masking import MASKS, Masking

FILE = 'pruning_masks.pth'


class SparseTrainer(Trainer):
    """Trains the weights that pruning has left, and those alone.

    The zeros are read once, when training starts; from then on the masks are
    explicit, and lie beside each checkpoint, so that a surviving weight that
    becomes exactly zero is not frozen by that. Gradients are masked before
    they are clipped, the optimizer's state when a run begins or resumes, and
    after every step the weights that the optimizer may move. The log has
    ``sparsity``; after training every pruned weight is asserted to be zero.

    Takes the arguments of transformers' ``Trainer``, and

    Args:
        names: Regular expressions on parameter names whose zeros are kept.
            By default the matrices of which at least 1% is zero.
        masks: Parameter name -> boolean mask, true = keep, in the place of
            zeros.

    Raises:
        ValueError: If there is nothing to keep at zero.
    """

    def __init__(
        self,
        *args: Any,
        names: str | list[str] | None = None,
        masks: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._names = [names] if isinstance(names, str) else names
        self.masks = dict(masks) if masks is not None else self._read()
        self.masking: Masking | None = None
        self.add_callback(_KeepZeros(self))

    def begin(self, optimizer: Any) -> None:
        """Masks model, gradients and the optimizer's state."""
        inner = getattr(optimizer, 'optimizer', optimizer)
        self.masking = Masking(self._plain(), [inner])
        self.masking.hold(lambda model: weight_regions(model, self.masks))

    def end(self) -> None:
        """Lets go of the gradients.

        Raises:
            ValueError: If a pruned weight is not zero.
        """
        masking, self.masking = self.masking, None
        masking.release()
        check_zeros(masking)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the sparsity to what the Trainer logs."""
        if self.masking is not None:
            logs['sparsity'] = sparsity_of(self.masking)
        super().log(logs, *args, **kwargs)

    def _plain(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _read(self) -> dict[str, Tensor]:
        model = self._plain()
        if self._names is None:
            names = sparse_weights(model)
        else:
            names = [
                name
                for name, _ in model.named_parameters()
                if any(re.search(pattern, name) for pattern in self._names)
            ]
        if not names:
            raise ValueError(
                'SparseTrainer: the model has no zeros to keep '
                f'(names={self._names}); prune it first, or train it with '
                "transformers' Trainer"
            )
        return read_zeros(model, names)

    def _save(
        self, output_dir: str | None = None, state_dict: dict | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            masks = {MASKS: pack_masks(self.masks)}
            save_checkpoint(masks, folder / FILE)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / FILE
        if path.is_file():
            found = load_checkpoint_file(path, mmap=False)
            self.masks, _ = unpack_masks(found[MASKS])
        else:
            self.masks = self._read()


class _KeepZeros(TrainerCallback):
    """Tells a :class:`SparseTrainer` where its run is."""

    def __init__(self, trainer: SparseTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, optimizer: Any, **__: Any) -> None:
        self.trainer.begin(optimizer)

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.trainer.masking.apply()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.trainer.end()
