"""Runs of mmengine's Runner: data checked first, training, evaluation."""

import copy
import numbers
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn
from torch.utils.data import DataLoader

from ...checkpoints.loading import load_checkpoint
from ...errors import UserError, blame
from ...models import fitted, loaded_model
from ...registry import MODEL_WRAPPERS
from ..console import ConsoleRunner
from .length import trains_by_epoch

SHARDED = 'mmprune.FullyShardedModel'


def data_problem(cfg: Config, key: str) -> str:
    """Returns why the data of a loader cannot be read, '' if it can."""
    try:
        with blame(f'`{key}` of {cfg.filename} cannot be built', cfg):
            _build_loader(cfg, key)
    except UserError as error:
        return str(error)
    return ''


def prepare_data(cfg: Config) -> tuple[int, dict | None]:
    """Checks the data of a training before anything else is done.

    Returns:
        Iterations of an epoch on each rank, and the meta information of the
        training data.

    Raises:
        ValueError: If training or validation data cannot be read or there is
            none.
    """
    keys = ['train_dataloader']
    if cfg.get('val_cfg') is not None:
        keys.append('val_dataloader')
    for key in keys:
        problem = data_problem(cfg, key)
        if problem:
            raise ValueError(f'{problem}; nothing was done')
    loader = _build_loader(cfg, 'train_dataloader')
    if not len(loader):
        raise ValueError(
            f'`train_dataloader` of {cfg.filename} gives no batch: it has '
            f'{len(loader.dataset)} samples and a batch of '
            f'{cfg.train_dataloader.get("batch_size")}'
        )
    return len(loader), getattr(loader.dataset, 'metainfo', None)


def _build_loader(cfg: Config, key: str) -> DataLoader:
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    return Runner.build_dataloader(copy.deepcopy(cfg[key]), seed=0)


def evaluated_data(cfg: Config) -> Any:
    """Returns the test data of a config."""
    return _build_loader(cfg, 'test_dataloader').dataset


class _Shards(ConsoleRunner):
    """A Runner that never has a whole sharded model on one device."""

    def wrap_model(self, wrapper: dict | None, model: nn.Module) -> nn.Module:
        """Leaves the model where it is: its parts move one by one."""
        sharded = (wrapper or {}).get('type') == SHARDED
        if not sharded or not self.distributed:
            return super().wrap_model(wrapper, model)
        return MODEL_WRAPPERS.build(wrapper, default_args=dict(module=model))

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Reads a checkpoint of whole tensors into main memory."""
        if (self.cfg.get('model_wrapper_cfg') or {}).get('type') == SHARDED:
            kwargs['map_location'] = 'cpu'
        super().resume(filename, *args, **kwargs)


class _KeepsConfig(_Shards):
    """A Runner in the folder of its own config, which it must not replace:
    its version of it would name files by absolute paths."""

    def dump_config(self) -> None:
        """Writes nothing; the visualizer stores the config with the logs."""


def runner_for(cfg: Config, model: nn.Module | None = None) -> Runner:
    """Builds a Runner, also where several processes have no GPU.

    Its messages are its own: mmengine would share them between two runs of
    one process that start in the same second.

    Args:
        cfg: Its config.
        model: Takes the place of the config's, with its weights.
    """
    cfg = copy.deepcopy(cfg)
    wrapper = dict(cfg.get('model_wrapper_cfg') or {})
    sharded = wrapper.get('type') == SHARDED
    if is_distributed() and not torch.cuda.is_available() and not sharded:
        wrapper.setdefault('type', 'MMDistributedDataParallel')
        wrapper.setdefault('broadcast_buffers', False)
        wrapper.setdefault(
            'find_unused_parameters', cfg.get('find_unused_parameters', False)
        )
        cfg.model_wrapper_cfg = {**wrapper, 'device_ids': None}
    if cfg.get('experiment_name') is None:
        stem = Path(cfg.filename).stem if cfg.filename else 'run'
        cfg.experiment_name = f'{stem}_{time.time_ns()}'
    own = Path(cfg.filename or '').resolve()
    inside = own == Path(cfg.work_dir).resolve() / own.name
    kind = _KeepsConfig if inside else _Shards
    if model is not None:
        kind = _holding(model, kind)
    with blame(f'{cfg.filename} cannot be run', cfg):
        return kind.from_cfg(cfg)


def runner_with(cfg: Config, checkpoint: dict, path: str | Path) -> Runner:
    """Builds a Runner around the model of a checkpoint that is read already.

    Its config says what it is, as if the Runner had built and loaded it.

    Raises:
        ValueError: If the checkpoint does not fit the model.
    """
    model = loaded_model(cfg, checkpoint, path)
    cfg = copy.deepcopy(cfg)
    cfg.model = fitted(cfg.model, checkpoint, path)
    cfg.load_from, cfg.resume = str(path), False
    return runner_for(cfg, model)


def _holding(model: nn.Module, kind: type[Runner]) -> type[Runner]:
    """Returns a Runner that neither builds its model nor loads weights."""

    class Holding(kind):
        def build_model(self, _: Any) -> nn.Module:
            return model

        def load_or_resume(self) -> None:
            self._has_loaded = True

    return Holding


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the newest checkpoint of a training, also of a moved folder."""
    latest = folder / 'latest.pth'
    if latest.exists():
        return latest.resolve()
    if not (folder / 'last_checkpoint').exists():
        return None
    found = Path(find_latest_checkpoint(str(folder)))
    found = found if found.exists() else folder / found.name
    return found if found.exists() else None


def run_training(path: Path, launcher: str, resume: bool) -> None:
    """Trains from a written config, in its folder."""
    cfg = Config.fromfile(path)
    cfg.launcher = launcher
    before = last_checkpoint(path.parent) if resume else None
    if before is not None:
        cfg.load_from, cfg.resume = str(before), True
    if before is None or not _is_finished(before, cfg.train_cfg):
        runner_for(cfg).train()


def trained(folder: Path) -> Path:
    """Returns what a training ended with; for the rank that writes.

    Raises:
        ValueError: If the training left no checkpoint.
    """
    last = last_checkpoint(folder)
    if last is None:
        raise ValueError(
            f'the training in {folder} wrote no checkpoint; the config must '
            'have default_hooks.checkpoint'
        )
    return last


def _is_finished(path: Path, train_cfg: dict) -> bool:
    meta = load_checkpoint(path)['meta']
    if trains_by_epoch(train_cfg):
        return int(meta.get('epoch', 0)) >= train_cfg.max_epochs
    return int(meta.get('iter', 0)) >= train_cfg.max_iters


def evaluate(
    cfg: Config, checkpoint: Path, work_dir: Path, launcher: str
) -> dict[str, float]:
    """Returns the metrics of a checkpoint, dense or pruned."""
    cfg = copy.deepcopy(cfg)
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        cfg.pop(key, None)
    cfg.pop('param_scheduler', None)
    cfg.work_dir, cfg.launcher = str(work_dir), launcher
    runner = runner_with(cfg, load_checkpoint(checkpoint), checkpoint)
    return {
        name: float(value)
        for name, value in runner.test().items()
        if isinstance(value, numbers.Real)
    }
