"""A run that was stopped and resumed ends as if it had never stopped."""

import itertools
import random
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dataset import worker_init_fn as mmengine_worker_init_fn
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..registry import FUNCTIONS, HOOKS

_PENDING = 'pending_gradients'


@HOOKS.register_module()
class SeedHook(Hook):
    """Makes the random state a function of the seed and the progress.

    mmengine's checkpoints hold no random states, so a resumed run draws
    other numbers than one that was never stopped. This hook seeds torch,
    CUDA, numpy and random from (seed, epoch, rank) at the start of every
    epoch, or from (seed, iteration, rank) before every batch is fetched when
    training goes by iterations. Data workers get their seeds from there,
    unless the dataloader names a ``worker_init_fn``. A checkpoint in the
    middle of a gradient accumulation carries the gradients so far.

    The seed is that of ``randomness`` in the config; without one, the random
    seed that the Runner chose and stored in its checkpoints.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Keeps the seed that loops and samplers were built with."""
        self._first_seed = runner.seed

    def before_train(self, runner: Runner) -> None:
        """Takes over the seeds of sampler, workers and iterator.

        Raises:
            ValueError: If the workers outlive an epoch, and with it the
                random state that a resumed run could restore.
        """
        loader, loop = runner.train_dataloader, runner.train_loop
        by_iteration = isinstance(loop, IterBasedTrainLoop)
        if loader.persistent_workers and not by_iteration:
            raise ValueError(
                'SeedHook: train_dataloader has persistent_workers=True, '
                'whose random state no checkpoint holds, so that a resumed '
                'run would differ; set persistent_workers=False'
            )
        _seed_sampler(loader, self._first_seed, runner)
        _seed_workers(loader)
        if by_iteration:
            # Begun anew: the first one fetched ahead, unseeded.
            seed_all(runner.seed, 0, runner.rank)
            loop.dataloader_iterator = seeded(
                type(loop.dataloader_iterator)(loader),
                runner.seed,
                runner.rank,
            )
        params = dict(runner.model.named_parameters())
        for name, grad in self.__dict__.pop('_pending', {}).items():
            params[name].grad = grad.to(params[name].device)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds all generators for this epoch."""
        seed_all(runner.seed, runner.epoch, runner.rank)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the gradients of an unfinished accumulation."""
        wrapper = runner.optim_wrapper
        # A dict of wrappers accumulates as its model says.
        unfinished = not isinstance(wrapper, OptimWrapperDict) and (
            not wrapper.should_update()
        )
        # Each rank has gradients of its own; one file cannot hold them.
        if unfinished and not runner.distributed:
            checkpoint[_PENDING] = {
                name: param.grad.cpu()
                for name, param in runner.model.named_parameters()
                if param.grad is not None
            }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps the gradients of an unfinished accumulation."""
        if runner._resume:
            self._pending = checkpoint.get(_PENDING, {})


def seeded(items: Iterator, seed: int, rank: int) -> Iterator:
    """Yields endless items, with all generators seeded before each.

    Resuming by iteration skips the items that were seen; counted here, every
    item is fetched in the same random state in both runs.
    """
    for count in itertools.count():
        seed_all(seed, count, rank)
        yield next(items)


def seed_all(seed: int, step: int, rank: int = 0) -> None:
    """Seeds torch (all devices), numpy and random.

    Any two (seed, step, rank) give unrelated streams.
    """
    mixed = np.random.SeedSequence([seed, step, rank]).generate_state(4)
    torch.manual_seed(int(mixed[0]) << 32 | int(mixed[1]))
    np.random.seed(mixed[2])
    random.seed(int(mixed[3]))


@FUNCTIONS.register_module()
def seed_worker(worker_id: int) -> None:
    """Seeds numpy and random of a data worker from torch's seed there.

    torch draws that one anew for each epoch and worker, from the state that
    :class:`SeedHook` has set.
    """
    mixed = np.random.SeedSequence(torch.initial_seed()).generate_state(2)
    np.random.seed(mixed[0])
    random.seed(int(mixed[1]))


def _seed_sampler(loader: DataLoader, first: int, runner: Runner) -> None:
    """Gives the sampler the seed of the run that is resumed.

    It was built before the checkpoint told it; a seed that the config gives
    the sampler itself stays.
    """
    mixed = runner._randomness_cfg.get('diff_rank_seed', False)
    seed = runner.seed - runner.rank if mixed else runner.seed
    for sampler in (loader.sampler, loader.batch_sampler):
        for part in (sampler, getattr(sampler, 'sampler', None)):
            own = getattr(part, 'seed', None)
            if own is not None and (mixed or own == first):
                part.seed = seed
            if isinstance(part, InfiniteSampler):
                part.indices = part._indices_of_rank()


def _seed_workers(loader: DataLoader) -> None:
    # mmengine's own function gives a worker the same seed in every epoch.
    chosen = loader.worker_init_fn
    stock = isinstance(chosen, partial) and (
        chosen.func is mmengine_worker_init_fn
    )
    if chosen is None or stock:
        loader.worker_init_fn = seed_worker
