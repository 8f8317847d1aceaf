"""Stops a training that no longer improves, but not before it has pruned."""

from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner

from ..registry import HOOKS
from .gradual_pruning_hook import pruning_goes_on


@HOOKS.register_module()
class EarlyStopHook(EarlyStoppingHook):
    """mmengine's ``EarlyStoppingHook``, which waits for the pruning.

    While a :class:`GradualPruningHook` has still to prune, evaluations do not
    count. How long was waited for is saved and resumed.

    Takes the arguments of ``EarlyStoppingHook``.
    """

    def before_run(self, runner: Runner) -> None:
        """Asks for nothing: a config with this hook is tested as well."""

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        """Counts an evaluation without improvement."""
        if not pruning_goes_on(runner):
            super().after_val_epoch(runner, metrics)
            runner.message_hub.update_info('early_stop_wait', self.wait_count)
            runner.message_hub.update_info(
                'early_stop_best', float(self.best_score)
            )

    def before_train(self, runner: Runner) -> None:
        """Goes on waiting where a resumed training was."""
        info = runner.message_hub.runtime_info
        self.wait_count = info.get('early_stop_wait', self.wait_count)
        self.best_score = info.get('early_stop_best', self.best_score)
