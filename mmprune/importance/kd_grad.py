"""Importance from what the loss of single steps says about a unit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from ..checks import check_choice
from ..groups import PruneGroup, Slice, unit_sums
from ..registry import TASK_UTILS
from ..statistics import FROM_GRADIENTS, Statistics

# How the products of weight and gradient of a unit become one number.
CHANGES = ('abs_of_sum', 'sum_of_abs')


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class KDGrad:
    r"""Mean over steps of the change of the loss without a unit.

    :math:`\frac1W \sum_t |\sum_{w \in i} w \, \partial L_t/\partial w|`. In a
    training the steps are the last W of it and the loss is the one that it
    steps with: of a ``mmprune.DistilledModel`` the distillation loss. Unlike
    :class:`Taylor`, which averages gradients first, steps of opposite sign
    do not cancel. Michel et al., "Are Sixteen Heads Really Better than One?",
    NeurIPS 2019, for heads; Molchanov et al., CVPR 2019.

    Args:
        reduce: ``abs_of_sum`` as above, over what reads the unit; or
            ``sum_of_abs``, the sum of the sizes of all products in its
            matrices.
    """

    reduce: str = 'abs_of_sum'
    # As Taylor's, changes of one loss.
    comparable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice('reduce', self.reduce, CHANGES)

    @property
    def needs(self) -> set[str]:
        """What it reads."""
        return {self.reduce}

    def __call__(self, group: PruneGroup, stats: Statistics) -> Tensor | None:
        """Returns ``[group.size]``, or ``None`` without any gradient."""
        return stats.changes.get(group.name)


def unit_changes(
    groups: Iterable[PruneGroup],
    tensors: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    kind: str = 'abs_of_sum',
) -> dict[str, Tensor]:
    r"""Returns the change of one step's loss without each unit of groups.

    ``abs_of_sum``: :math:`|\sum w \, \partial L/\partial w|` over what reads
    the unit, which is the derivative by a gate on its output. ``sum_of_abs``:
    :math:`\sum |w \, \partial L/\partial w|` over all its matrices.

    Args:
        groups: The groups; one without any gradient is left out.
        tensors: Tensor name -> weights.
        grads: Tensor name -> gradient.
        kind: One of :data:`CHANGES`.

    Returns:
        Group name -> ``[size]``.
    """
    found = {}
    for group in groups:
        parts = [s for s in _parts(group, kind) if s.tensor in grads]
        products = [_product(s, tensors, grads, kind) for s in parts]
        if products:
            sums = [
                unit_sums(product, part, group.size)
                for product, part in zip(products, parts, strict=True)
            ]
            found[group.name] = sum(sums).abs()
    return found


def _parts(group: PruneGroup, kind: str) -> tuple[Slice, ...]:
    if kind == 'sum_of_abs':
        return group.slices
    # A slice with a fill is not multiplied by its unit (a logit), so there
    # the producers tell the change.
    readers = tuple(s for s in group.consumers if s.fill == 0)
    whole = readers and len(readers) == len(group.consumers)
    return readers if whole else group.producers


def _product(
    part: Slice,
    tensors: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    kind: str,
) -> Tensor:
    weight, grad = tensors[part.tensor].detach(), grads[part.tensor]
    product = weight.float() * grad.float()
    return product.abs() if kind == 'sum_of_abs' else product


for _kind in CHANGES:
    FROM_GRADIENTS[_kind] = ('changes', partial(unit_changes, kind=_kind))
