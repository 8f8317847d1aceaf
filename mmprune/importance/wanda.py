"""Importance from weights and the inputs that they multiply."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from ..groups import PruneGroup, unit_sums
from ..inputs import InputSums, watched_layers
from ..registry import TASK_UTILS
from ..statistics import COLLECTORS, Statistics


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class Wanda:
    r"""Size of a weight times the norm of the input that it reads.

    :math:`|w_{ij}| \, \|x_j\|_2` with the norm over all calibration tokens;
    Sun et al., "A Simple and Effective Pruning Approach for Large Language
    Models", ICLR 2024, where the weights of one output compete
    (``scope='row'``). A unit is worth the norm of this over the weights that
    read it. Of a convolution the input channels count.
    """

    needs: ClassVar[set[str]] = {'inputs'}

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` if no reader was run."""
        sums = [
            unit_sums(self.weights(s.tensor, stats).square(), s, group.size)
            for s in group.consumers
            if s.tensor in stats.inputs
        ]
        return sum(sums).sqrt() if sums else None

    def weights(self, name: str, stats: Statistics) -> Tensor:
        """Returns the importance of each weight of a tensor, in its shape."""
        norms = stats.inputs[name].sqrt()
        sizes = stats.tensors[name].abs().to(norms.dtype)
        # In place: what a block's largest weight takes is most of a pass's.
        return sizes.mul_(norms)


@contextmanager
def _collect(
    model: nn.Module,
    groups: Sequence[PruneGroup],
    weights: Sequence[str],
    stats: Statistics,
    products: bool = False,
) -> Iterator[None]:
    """Fills in what the layers that read units or weights are called with."""
    read = {part.tensor for group in groups for part in group.consumers}
    layers = watched_layers(model, sorted(read | set(weights)))
    sums = InputSums(layers, products)
    with sums.watching():
        yield
    stats.inputs, stats.hessian = sums.means(stats.num_batches)


COLLECTORS['inputs'] = _collect
COLLECTORS['hessian'] = partial(_collect, products=True)
