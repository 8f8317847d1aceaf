"""Zeros that a training has to keep, its parameters split or not."""

from mmengine.runner import Runner
from torch import nn

from ..pruners import prunable_weights
from ..shards import count_zeros, local
from .masking import Masking
from .runner_parts import averages_of, optimizers_of, plain_model

WRAPPER = 'FullyShardedModel'


def model_in_training(runner: Runner) -> nn.Module:
    """Returns the model without its wrapper, its parameters split or not.

    Raises:
        ValueError: If another wrapper splits them than FSDP2, or there are
            averages of a model that is split.
    """
    if type(runner.model).__name__ != WRAPPER:
        return plain_model(runner)
    if averages_of(runner):
        raise ValueError(
            'an EMA hook copies whole parameters, and FullyShardedModel '
            'splits them; leave the hook out'
        )
    return runner.model.module


def masking_in_training(runner: Runner) -> Masking:
    """Returns an empty :class:`Masking` of what a Runner trains."""
    return Masking(
        model_in_training(runner), optimizers_of(runner), averages_of(runner)
    )


def check_zeros(masking: Masking) -> None:
    """Asserts that all held weights are at their fill.

    Raises:
        ValueError: If one is not.
    """
    for region in masking.regions:
        other = local(region.tensor.detach()) != region.fill
        count = int((other & region.mask()).sum())
        if count:
            raise ValueError(
                f'{count} weights of {region.name} are pruned and not zero '
                'after training; something else changes weights after each '
                'step, leave it out'
            )


def sparsity_of(masking: Masking) -> float:
    """Returns the fraction of zeros in the tensors that are held.

    Of sharded ones in the part of this rank.
    """
    tensors = {region.name: region.tensor for region in masking.regions}
    zeros, total = count_zeros(tensors.values())
    return zeros / max(1, total)


def sparse_weights(model: nn.Module, least: float = 0.01) -> list[str]:
    """Returns the names of the kernels and matrices that look pruned.

    For a model that says nothing about it itself, as one that another tool
    has pruned.

    Args:
        model: Any model.
        least: The fraction of zeros from which on one counts as pruned.
    """
    found = []
    for name, weight in prunable_weights(model).items():
        zeros, total = count_zeros([weight])
        if zeros >= least * total > 0:
            found.append(name)
    return found
