"""What a family of models says: its groups and, when asked for, its data."""

import copy
import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from .errors import blame
from .groups import PruneGroup
from .registry import FUNCTIONS, TASK_UTILS
from .tensor_path import TensorPath, traced_part


@TASK_UTILS.register_module()
class Family:
    """The default: groups by adapters, data by the config's dataloaders.

    Nothing is read before it is asked for, and asking for groups reads
    nothing, unless an adapter runs the model (``mmprune.discovered_groups``).

    The example is the first sample of the test data, or where the config has
    none of the validation or training data. It and the batches reach the
    model as in a Runner: through its ``data_preprocessor``, with
    ``mode='tensor'`` or ``mode='loss'``.

    A class of its own, registered in ``TASK_UTILS``, needs the same methods.

    Args:
        cfg: Config of the model.
        adapters: Names of functions in ``mmprune.registry.FUNCTIONS`` that
            yield groups, as ``'mmprune.vit_groups'``.
        num_batches: Batches of the training data for calibration.

    Raises:
        ValueError: If an adapter is not registered.
    """

    def __init__(
        self, cfg: Config, adapters: Sequence[str] = (), num_batches: int = 8
    ) -> None:
        self.cfg, self.num_batches = cfg, num_batches
        self.adapters = [_adapter(name) for name in adapters]

    def groups(self, model: nn.Module) -> Iterator[PruneGroup]:
        """Yields what can be removed.

        Where two adapters cut the same dimension of a tensor, the group of
        the first one counts.
        """
        taken: set[tuple[str, int]] = set()
        for find in self.adapters:
            more = ()
            if 'forward' in inspect.signature(find).parameters:
                more = (self.forward,)
            found: set[tuple[str, int]] = set()
            for group in find(model, *more):
                places = {(part.tensor, part.dim) for part in group.slices}
                found |= places
                if not places & taken:
                    yield group
            taken |= found

    def dense_reason(self, tensor: str) -> str:
        """Returns why no group covers a tensor."""
        return 'no group covers it'

    @property
    def source(self) -> str:
        """Where the example comes from, in words."""
        key = self._example_key
        return f'{key} ({self.cfg[key].dataset.type})'

    @property
    def calibration_source(self) -> str:
        """Where the batches come from, in words."""
        dataset = self.cfg.train_dataloader.dataset
        return f'train_dataloader ({dataset.type})'

    def forward(self, model: nn.Module) -> Any:
        """Returns all outputs for the example, to compare models."""
        data = model.data_preprocessor(copy.deepcopy(self._example), False)
        return call(model, data, 'tensor')

    def single_frame(self, model: nn.Module) -> Any:
        """Runs the model once, to count its cost."""
        return self.forward(model)

    def batches(self) -> list[Any]:
        """Returns the first batches of the training data, in order.

        Raises:
            ValueError: If the config has no training data.
        """
        if self.cfg.get('train_dataloader') is None:
            raise ValueError(
                f'{self.cfg.filename} has no `train_dataloader` to calibrate '
                'on; add it, or choose a criterion that needs no data'
            )
        with seeded(0):
            loader = _loader(self.cfg.train_dataloader, self.cfg)
            return list(islice(loader, self.num_batches))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Returns the model's own loss on a batch."""
        # What a training gives the loss, as padded masks, is added then only.
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        return model.parse_losses(call(model, data, 'loss'))[0]

    def tensor_path(self, model: nn.Module) -> TensorPath:
        """Returns what of the model is exported: one call on the example.

        Raises:
            ValueError: If that returns no tensors.
        """
        data = model.data_preprocessor(copy.deepcopy(self._example), False)
        inputs = {k: v for k, v in data.items() if isinstance(v, Tensor)}

        def run(model: nn.Module, given: dict[str, Tensor]) -> Any:
            return call(model, {**data, **given}, 'tensor')

        return TensorPath([traced_part('model', model, run, inputs)])

    @classmethod
    def use_annotations(cls, cfg: Config, ann_file: str) -> None:
        """Points the test data of a config at another info file, in place.

        Raises:
            ValueError: If there is no such file or no test data.
        """
        if not Path(ann_file).is_file():
            raise ValueError(f'--ann-file: no info file at {ann_file}')
        loader = cfg.get('test_dataloader')
        if loader is None:
            raise ValueError(
                f'--ann-file {ann_file} is for test data, and '
                f'{cfg.filename} has no `test_dataloader`; leave it out'
            )
        dataset = loader.dataset
        while 'dataset' in dataset:  # as in RepeatDataset
            dataset = dataset.dataset
        dataset.ann_file = str(Path(ann_file).resolve())

    @property
    def _example_key(self) -> str:
        for split in ('test', 'val', 'train'):
            if self.cfg.get(f'{split}_dataloader') is not None:
                return f'{split}_dataloader'
        raise ValueError(
            f'{self.cfg.filename} has no dataloader, and the model is run on '
            'the first sample of one; add a test_dataloader'
        )

    @cached_property
    def _example(self) -> Any:
        loader = {**self.cfg[self._example_key], 'batch_size': 1}
        with seeded(0):
            return next(iter(_loader(loader, self.cfg)))


def use_checkpoint(cfg: Config, checkpoint: str | Path) -> None:
    """Lets a config take from a checkpoint what it leaves open, in place.

    Only families of which a checkpoint says what the model is do that.

    Raises:
        ValueError: If the checkpoint does not say it.
    """
    kind = family_kind(cfg)
    getattr(kind, 'use_checkpoint', lambda *_: None)(cfg, checkpoint)


def family_kind(cfg: Config) -> type | None:
    """Returns the class of a config's family, None where nothing names it."""
    if cfg.get('pruning') is not None:
        return TASK_UTILS.get(str(cfg.pruning.get('type')))
    if _is_stock_detector(cfg):
        return TASK_UTILS.get('mmprune.DetectorFamily')
    return None


def _is_stock_detector(cfg: Config) -> bool:
    scope = cfg.get('default_scope')
    return cfg.get('pruning') is None and scope in ('mmdet', 'mmdet3d')


def build_family(cfg: Config) -> Any:
    """Returns what the config's ``pruning`` names; it has read no data.

    Raises:
        ValueError: If the config does not say how to prune its model.
    """
    if _is_stock_detector(cfg):
        return TASK_UTILS.build(dict(type='mmprune.DetectorFamily', cfg=cfg))
    if cfg.get('pruning') is None:
        raise ValueError(
            f'{cfg.filename} has no `pruning` entry that says which groups '
            'its model has; start from one of projects/configs, or see '
            'docs/add_a_family.md'
        )
    with blame(f'`pruning` of {cfg.filename} cannot be built', cfg):
        return TASK_UTILS.build({**cfg.pruning, 'cfg': cfg})


def use_annotations(cfg: Config, ann_file: str) -> None:
    """Points a config's data at another info file, in place.

    The family knows which data that is; a config without one, or a family
    that does not say, has :meth:`Family.use_annotations`.

    Raises:
        ValueError: If there is no such file or no data to point at it.
    """
    kind = family_kind(cfg) or Family
    getattr(kind, 'use_annotations', Family.use_annotations)(cfg, ann_file)


def _adapter(name: str) -> Any:
    find = FUNCTIONS.get(name)
    if find is None:
        raise ValueError(
            f'no adapter {name!r} is registered; name a function that yields '
            "groups, as 'mmprune.vit_groups', and import its module in "
            '`custom_imports`'
        )
    return find


def call(model: nn.Module, data: Any, mode: str) -> Any:
    """Runs a model on what its data preprocessor returned."""
    if isinstance(data, Mapping):
        return model(**data, mode=mode)
    return model(*data, mode=mode)


def _loader(loader: dict, cfg: Config) -> Any:
    """Builds a dataloader that reads in order, in this process."""
    from mmengine.runner import Runner

    init_default_scope(cfg.get('default_scope', 'mmengine'))
    loader = copy.deepcopy(dict(loader))
    for key in ('batch_sampler', 'prefetch_factor', 'persistent_workers'):
        loader.pop(key, None)
    loader.setdefault('batch_size', 1)
    loader['sampler'] = dict(type='DefaultSampler', shuffle=False)
    loader['num_workers'] = 0
    return Runner.build_dataloader(loader, seed=0)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Makes what is random repeatable; the generators stay as they were."""
    states = random.getstate(), np.random.get_state()
    used = torch.cuda.is_initialized()
    devices = range(torch.cuda.device_count() if used else 0)
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
