"""What a Runner trains: the model, its groups, optimizers and averages."""

from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel, is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

from ..groups import PruneGroup
from ..pruners.protection import protect_frozen
from ..registry import FUNCTIONS, TASK_UTILS
from .masking import Masking


def masking_of(runner: Runner) -> Masking:
    """Returns an empty :class:`Masking` of what a Runner trains."""
    return Masking(
        plain_model(runner), optimizers_of(runner), averages_of(runner)
    )


def plain_model(runner: Runner) -> nn.Module:
    """Returns the model without its distributed wrapper.

    Raises:
        ValueError: If the wrapper splits the parameters over the ranks.
    """
    model = runner.model
    kinds = ' '.join(kind.__name__ for kind in type(model).__mro__)
    if 'FullySharded' in kinds or 'DeepSpeed' in kinds:
        raise ValueError(
            f'what is pruned here is chosen from whole parameters, and '
            f'{type(model).__name__} splits them; train with '
            'MMDistributedDataParallel, or prune before and train with '
            'mmprune.MaskHook and mmprune.FullyShardedModel'
        )
    return model.module if is_model_wrapper(model) else model


def optimizers_of(runner: Runner) -> list[Optimizer]:
    """Returns the optimizers of a Runner."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return [single.optimizer for single in wrapper.values()]
    return [wrapper.optimizer]


def averaged_models(runner: Runner) -> list[BaseAveragedModel]:
    """Returns the averages that EMA hooks keep, with their counters."""
    hooks = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    return [hook.ema_model for hook in hooks]


def averages_of(runner: Runner) -> list[nn.Module]:
    """Returns the averaged copies of the model that EMA hooks keep."""
    return [average.module for average in averaged_models(runner)]


def groups_of(
    runner: Runner, model: nn.Module, name: str | None
) -> list[PruneGroup]:
    """Returns the groups of a model in training; frozen ones stay dense.

    Args:
        runner: Its config's ``pruning`` tells the groups if no name does.
        model: The model without a wrapper.
        name: Name of a registered function that yields groups.

    Raises:
        ValueError: If neither says which groups the model has.
    """
    if name is not None:
        find = FUNCTIONS.get(name)
        if find is None:
            raise ValueError(
                f'no function {name!r} is registered that yields groups; '
                "name one as 'mmprune.vit_groups', or leave `groups` out and "
                'give the config a `pruning` entry'
            )
    elif 'pruning' in runner.cfg:
        cfg = runner.cfg
        find = TASK_UTILS.build({**cfg.pruning, 'cfg': cfg}).groups
    else:
        raise ValueError(
            'nothing says which groups the model has; give the hook '
            "`groups`, as 'mmprune.vit_groups', or the config a `pruning` "
            'entry'
        )
    training = model.training
    model.eval()
    try:
        return protect_frozen(list(find(model)), model)
    finally:
        model.train(training)
