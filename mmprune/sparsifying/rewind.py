"""The weights that every round restarts from."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ..atomic_file import save_checkpoint
from ..checkpoints.comparing import checksum, difference, weights_of
from ..checkpoints.reading import load_checkpoint_file


@dataclass(frozen=True)
class RewindPoint:
    """A deep copy of a model's state on the CPU, and its checksum."""

    weights: dict[str, Tensor]
    checksum: str

    @classmethod
    def of(cls, model: nn.Module) -> 'RewindPoint':
        """Returns the present state of a model."""
        weights = {
            name: tensor.detach().to('cpu', copy=True).contiguous()
            for name, tensor in model.state_dict().items()
        }
        return cls(weights, checksum(weights))

    @classmethod
    def load(cls, path: str | Path) -> 'RewindPoint':
        """Reads the weights of a checkpoint, ours or any other.

        Raises:
            ValueError: If the file holds no weights, or not those it was
                written with.
        """
        found = load_checkpoint_file(path, mmap=False)
        weights = weights_of(found, path)
        point = cls(dict(weights), checksum(weights))
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
        if checksum(self.weights) != self.checksum:
            raise ValueError(
                'the rewind point has changed during training: some code '
                'writes into its tensors'
            )
