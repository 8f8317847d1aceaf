"""What a student imitates of a teacher, as a term of a loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice
from ..pruners.verify import tensors_of

_LOSSES = ('kl', 'l1', 'mse')


@dataclass(frozen=True)
class Term:
    r"""An output that the student imitates, and its weight in the loss.

    ``mse`` and ``l1`` are means over all elements. ``kl`` is
    :math:`T^2 \sum_c p_c \log (p_c / q_c)` with the teacher's :math:`p` and
    the student's :math:`q` softened by the temperature :math:`T`, a mean over
    all other dimensions; Hinton et al., "Distilling the Knowledge in a Neural
    Network", 2015.

    Args:
        source: Path of the module whose output counts, the same in both
            models; empty for what ``forward(mode='tensor')`` returns, which
            costs the student a second forward.
        loss: ``kl``, ``mse`` or ``l1``.
        weight: Factor of the loss.
        temperature: Of ``kl``.
        keys: Entries to compare where the output is a dict; empty for all
            tensors in it.
        dim: Dimension of the classes, for ``kl``.
        teacher_source: Path of the module in the teacher, where it is
            another: with half the layers the student's layer i follows the
            teacher's 2i.
        mask: Name of an input ``[B, L]`` that is 1 where a position counts,
            as ``attention_mask``; means are then over those positions of
            outputs ``[B, L, width]``.
    """

    source: str = ''
    loss: str = 'mse'
    weight: float = 1.0
    temperature: float = 1.0
    keys: Sequence[str] = ()
    dim: int = -1
    teacher_source: str = ''
    mask: str = ''

    def __post_init__(self) -> None:
        check_choice('loss of a distillation', self.loss, _LOSSES)
        if self.weight <= 0 or self.temperature <= 0:
            raise ValueError(
                'weight and temperature of a distillation must be positive, '
                f'found {self.weight:g} and {self.temperature:g}'
            )

    @property
    def name(self) -> str:
        """How the logs call it."""
        return f'loss_distill_{self.source or "outputs"}'

    def tensors(self, output: Any) -> list[Tensor]:
        """Returns the tensors of an output that count.

        Raises:
            KeyError: If the output lacks a key.
        """
        if self.keys:
            missing = [
                key
                for key in self.keys
                if not isinstance(output, Mapping) or key not in output
            ]
            if missing:
                has = list(output) if isinstance(output, Mapping) else []
                raise KeyError(
                    f'{self.source or "the model"} returns no {missing[0]!r} '
                    f'to distil; it has {has}'
                )
            output = [output[key] for key in self.keys]
        return tensors_of(output)

    @property
    def expected(self) -> str:
        """Path of the module in the teacher."""
        return self.teacher_source or self.source

    def __call__(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Returns the weighted loss of two tensors of one shape.

        Args:
            student: Output of the student.
            teacher: Output of the teacher.
            mask: ``[B, L]``, where positions count; ``None`` for all.
        """
        student, teacher = student.float(), teacher.float()
        if mask is not None:
            chosen = mask.bool()
            student, teacher = student[chosen], teacher[chosen]
        if self.loss == 'mse':
            return self.weight * F.mse_loss(student, teacher)
        if self.loss == 'l1':
            return self.weight * F.l1_loss(student, teacher)
        soft = self.temperature
        log_q = F.log_softmax(student / soft, self.dim)
        log_p = F.log_softmax(teacher / soft, self.dim)
        divergence = (log_p.exp() * (log_p - log_q)).sum(self.dim).mean()
        return self.weight * soft**2 * divergence
