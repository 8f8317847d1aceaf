"""The weights that every round restarts from."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..atomic_file import save_checkpoint
from ..checkpoints.comparing import difference
from ..checkpoints.reading import load_checkpoint_file


@dataclass(frozen=True)
class RewindPoint:
    """A deep copy of a model's state on the CPU.

    Args:
        weights: Name -> tensor.
        checksum: SHA-256 of names, shapes and bytes.
    """

    weights: dict[str, Tensor]
    checksum: str

    @classmethod
    def of(cls, model: nn.Module) -> 'RewindPoint':
        """Returns the present state of a model."""
        weights = {
            name: tensor.detach().to('cpu', copy=True).contiguous()
            for name, tensor in model.state_dict().items()
        }
        return cls(weights, _checksum(weights))

    @classmethod
    def load(cls, path: str | Path) -> 'RewindPoint':
        """Reads the weights of a checkpoint, ours or any other.

        Raises:
            ValueError: If the file holds no weights, or not those it was
                written with.
        """
        found = load_checkpoint_file(path, mmap=False)
        weights = found.get('state_dict', found)
        named = isinstance(weights, Mapping) and all(
            isinstance(v, Tensor) for v in weights.values()
        )
        if not weights or not named:
            raise ValueError(
                f'{path} holds no weights: under `state_dict` names with '
                f'tensors are expected, the file has {sorted(found)[:5]}'
            )
        point = cls(dict(weights), _checksum(weights))
        stated = (found.get('meta') or {}).get('rewind_checksum')
        if stated not in (None, point.checksum):
            raise ValueError(
                f'{path} has been changed since it was written: its weights '
                'have another checksum than it states'
            )
        return point

    def save(self, path: str | Path, meta: dict | None = None) -> None:
        """Writes a checkpoint like any other, whole or not at all."""
        meta = {**(meta or {}), 'rewind_checksum': self.checksum}
        save_checkpoint(dict(meta=meta, state_dict=self.weights), path)

    def check_fits(self, model: nn.Module, name: str | Path) -> None:
        """Raises ``ValueError`` if keys or shapes are not the model's."""
        problem = difference(model.state_dict(), self.weights)
        if problem:
            raise ValueError(f'{name} does not fit the model: {problem}')

    def restore(self, model: nn.Module) -> None:
        """Copies the weights into the model's own tensors, in place.

        Raises:
            ValueError: If the copy here has changed since it was made.
        """
        self.verify()
        model.load_state_dict(self.weights)

    def verify(self) -> None:
        """Raises ``ValueError`` if the weights are no longer the same."""
        if _checksum(self.weights) != self.checksum:
            raise ValueError(
                'the rewind point has changed during training: some code '
                'writes into its tensors'
            )


def _checksum(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f'{name}:{tensor.dtype}:{tuple(tensor.shape)};'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
