"""The rewind point of a run and the file that keeps it."""

from pathlib import Path

from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner
from torch import nn

from ..sparsifying.rewind import RewindPoint
from ..sparsifying.runner_parts import averages_of


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
