"""The groups of a model that a Runner trains."""

from mmengine.runner import Runner
from torch import nn

from ..groups import PruneGroup
from ..pruners import protect_frozen
from ..registry import FUNCTIONS, TASK_UTILS


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
