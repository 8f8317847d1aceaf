"""How long a training is: in epochs or in iterations."""

from dataclasses import dataclass

from mmengine.config import Config

from ..options import DEFAULT_EPOCHS


@dataclass(frozen=True)
class Length:
    """How long a run is, in epochs or in iterations.

    Args:
        steps: Epochs of this run, or iterations.
        epoch_length: Iterations of an epoch, on each rank.
        first: Epochs, or iterations, that the checkpoint has behind it.
        by_epoch: Whether epochs are counted.
    """

    steps: int
    epoch_length: int
    first: int = 0
    by_epoch: bool = True

    @property
    def iterations(self) -> int:
        """Iterations of this run."""
        return self.steps * (self.epoch_length if self.by_epoch else 1)

    @property
    def first_iteration(self) -> int:
        """Iterations that the checkpoint has behind it."""
        return self.first * (self.epoch_length if self.by_epoch else 1)

    @property
    def last(self) -> int:
        """The number of the last epoch or iteration."""
        return self.first + self.steps

    def __str__(self) -> str:
        if not self.by_epoch:
            return f'{self.steps} iterations'
        return f'{self.steps} epochs of {self.epoch_length} iterations'


def trains_by_epoch(train_cfg: dict) -> bool:
    """Returns whether the loop of a config counts epochs."""
    kind = str(train_cfg.get('type', ''))
    if kind:
        return kind.rpartition('.')[2] != 'IterBasedTrainLoop'
    return train_cfg.get('by_epoch', True)


def asked_steps(
    cfg: Config, epochs: int | None, iterations: int | None
) -> tuple[int, bool]:
    """Returns how long a training is asked to be.

    Returns:
        Epochs or iterations, and whether it is epochs.

    Raises:
        ValueError: If the config counts in the other.
    """
    by_epoch = trains_by_epoch(cfg.train_cfg)
    if by_epoch and iterations is not None:
        raise ValueError(
            f'{cfg.filename} trains by epochs, and --fine-tune-iters counts '
            'iterations; give --fine-tune-epochs'
        )
    if by_epoch:
        return epochs or DEFAULT_EPOCHS, True
    if iterations is None:
        raise ValueError(
            f'{cfg.filename} trains by iterations, and --fine-tune-epochs '
            'counts epochs; give --fine-tune-iters'
        )
    return iterations, False
