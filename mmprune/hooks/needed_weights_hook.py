"""A training that makes no sense from random weights."""

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..registry import HOOKS

_NAME = 'mmprune.NeededWeightsHook'
_HINT = '--load-from CHECKPOINT'


@HOOKS.register_module()
class NeededWeightsHook(Hook):
    """Refuses a training that starts from no checkpoint.

    For a stage that goes on from the weights of another one: without them
    the layers that it freezes would stay random.

    Args:
        hint: How to name the checkpoint, for the message.
    """

    def __init__(self, hint: str = _HINT) -> None:
        self.hint = hint

    def before_train(self, runner: Runner) -> None:
        """Checks that the Runner has loaded something.

        Raises:
            ValueError: If it has not.
        """
        if not runner._has_loaded:
            raise _refusal(runner.cfg, self.hint)


def check_weights(cfg: Config) -> None:
    """Does what the hook does, before any data are read.

    Raises:
        ValueError: If the config has the hook and names no checkpoint.
    """
    if cfg.get('load_from') or cfg.get('resume'):
        return
    for hook in cfg.get('custom_hooks') or ():
        if hook['type'] == _NAME:
            raise _refusal(cfg, hook.get('hint', _HINT))


def _refusal(cfg: Config, hint: str) -> ValueError:
    return ValueError(
        f'{cfg.filename or "this config"} goes on from the weights of another '
        f'training, and none were given; add {hint}, or the layers that it '
        'freezes would stay random'
    )
