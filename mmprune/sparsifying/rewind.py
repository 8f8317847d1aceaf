"""The weights that every round restarts from."""

from dataclasses import dataclass
from pathlib import Path

from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner
from torch import Tensor, nn

from ..atomic_file import save_checkpoint
from ..checkpoints.comparing import checksum, difference, weights_of
from ..checkpoints.reading import load_checkpoint_file
from .runner_parts import averages_of


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


class RewindFile:
    """Reads, takes and checks the weights that every round restarts from.

    Args:
        runner: The Runner.
        init: File of the user with the weights at the start: read if it is
            there, else written. The run never reads it again: another run
            may share it, and with a ``rewind_epoch`` the run rewinds to
            other weights.

    Attributes:
        point: The weights, ``None`` until they are taken or read.
    """

    def __init__(self, runner: Runner, init: str | None) -> None:
        self.runner = runner
        self.given = Path(init).expanduser() if init else None
        self.point: RewindPoint | None = None

    @property
    def path(self) -> Path:
        """Where the point is kept."""
        return Path(self.runner.work_dir) / 'rewind_point.pth'

    @property
    def checksum(self) -> str:
        """Of the point; empty as long as there is none."""
        return self.point.checksum if self.point else ''

    def begin(self, model: nn.Module, insist: bool) -> None:
        """Brings a fresh run, and its averages, to the user's weights.

        Raises:
            ValueError: If the file does not fit, or nothing is pretrained.
        """
        pretrained = bool(getattr(model, 'pretrained_tensors', 0))
        if self.given is not None and self.given.is_file():
            point = RewindPoint.load(self.given)
            point.check_fits(model, self.given)
            point.restore(model)
            for average in averages_of(self.runner):
                average.load_state_dict(point.weights)
            pretrained = True
            self.runner.logger.info(f'first weights read from {self.given}')
        elif self.runner._load_from is not None:
            pretrained = True
        if insist and not pretrained:
            raise ValueError(
                'require_pretrained starts from pretrained weights, and none '
                'were given; set model.pretrained, load_from or '
                'train_cfg.init'
            )
        # No rank looks for the file after another has written it.
        barrier()
        if self.given is not None and not self.given.is_file():
            self._write(RewindPoint.of(model), self.given, 0)

    def take(self, model: nn.Module, epoch: int) -> None:
        """Makes the present weights the rewind point, and writes them."""
        self.point = RewindPoint.of(model)
        self._write(self.point, self.path, epoch)
        barrier()

    def _write(self, point: RewindPoint, path: Path, epoch: int) -> None:
        if is_main_process():
            point.save(
                path, dict(cfg=self.runner.cfg.pretty_text, epoch=epoch)
            )
            self.runner.logger.info(
                f'weights of epoch {epoch} written to {path}, '
                f'sha256 {point.checksum[:16]}'
            )

    def load(self, checksum: str) -> None:
        """Reads the point that a resumed run began with.

        Raises:
            ValueError: If the file is gone or another.
        """
        if not self.path.is_file():
            raise ValueError(
                f'the run rewinds to {self.path}, which is gone; put it back '
                'or start the run again'
            )
        self.point = RewindPoint.load(self.path)
        if self.checksum != checksum:
            raise ValueError(
                f'{self.path} is not the rewind point of the checkpoint: it '
                'has another checksum; put the right file there or start the '
                'run again'
            )
