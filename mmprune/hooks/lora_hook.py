"""Trains adapters on a frozen model and writes them by themselves."""

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from ..models.lora import adapter_state, is_adapter, save_adapter
from ..registry import HOOKS
from ..shards import count_zeros
from ..sparsifying.holding import model_in_training


@HOOKS.register_module()
class LoraHook(Hook):
    """Keeps a LoRA training to its adapters.

    Checkpoints hold the adapters and not the frozen weights below them, for
    the model is built with those. After training the adapters are written as
    a folder that PEFT reads too. The zeros of the frozen weights are logged
    as ``train/sparsity`` and asserted at the end.

    Args:
        folder: Of the adapters; by default ``adapter`` in the work folder.
        base: What the adapters' folder says of the model below.
    """

    # After SafeCheckpointHook, which puts the parts of sharded weights in.
    priority = 'LOWEST'

    def __init__(self, folder: str | None = None, base: str = '') -> None:
        self.folder, self.base = folder, base

    def before_train(self, runner: Runner) -> None:
        """Says what trains.

        Raises:
            ValueError: If the model has no adapters.
        """
        model = model_in_training(runner)
        count = sum(
            p.numel() for n, p in model.named_parameters() if is_adapter(n)
        )
        if not count:
            raise ValueError(
                'LoraHook: the model has no adapters; build it with '
                "model = dict(type='mmprune.LoraModel', model=...)"
            )
        self._zeros = _zeros(model)
        zeros, total = self._zeros
        runner.logger.info(
            f'LoraHook trains {count} weights of adapters on {total} '
            f'frozen ones, of which {zeros / total:.2%} are zero'
        )

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Logs the sparsity below the adapters."""
        zeros, total = self._zeros
        runner.message_hub.update_scalar('train/sparsity', zeros / total)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the frozen weights, as the model was built with them."""
        model = model_in_training(runner)
        known = checkpoint['state_dict']
        checkpoint['state_dict'] = {**model.state_dict(), **known}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Leaves the frozen weights out."""
        checkpoint['state_dict'] = {
            name: value
            for name, value in checkpoint['state_dict'].items()
            if is_adapter(name)
        }

    def after_train(self, runner: Runner) -> None:
        """Writes the adapters.

        Raises:
            ValueError: If the frozen weights have changed.
        """
        model = model_in_training(runner)
        if _zeros(model) != self._zeros:
            raise ValueError(
                'the frozen weights have other zeros than before training; '
                'something else changes weights, leave it out'
            )
        state = adapter_state(model)
        if is_main_process():
            folder = self.folder or Path(runner.work_dir) / 'adapter'
            save_adapter(model, folder, self.base, state)
            runner.logger.info(f'the adapters are in {folder}')


def _zeros(model: nn.Module) -> tuple[int, int]:
    return count_zeros(
        param
        for name, param in model.named_parameters()
        if param.ndim > 1 and not is_adapter(name)
    )
