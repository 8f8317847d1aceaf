"""Batches of sentences of nearly the same length."""

import random
from collections.abc import Iterator, Sized

from torch.utils.data import Sampler

from ..registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class BatchesByLength(Sampler):
    """Groups what a sampler gives by length, so that little is filled up.

    The sampler's order is cut into pools; each pool is sorted by length and
    cut into batches, which come in random order. As a config's
    ``batch_sampler``; the order is that of the sampler's epoch and seed.

    Args:
        sampler: mmengine's sampler, of a data set with ``lengths``.
        batch_size: Sentences of a batch.
        drop_last: Whether to leave out an incomplete batch.
        pool: Batches of a pool.

    Raises:
        ValueError: If the data set does not know its lengths.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        drop_last: bool = False,
        pool: int = 50,
    ) -> None:
        lengths = getattr(getattr(sampler, 'dataset', None), 'lengths', None)
        if lengths is None:
            raise ValueError(
                'BatchesByLength needs a sampler of a data set with lengths, '
                f'found {type(sampler).__name__}; use a data set of '
                'sentences, or leave batch_sampler out'
            )
        self.sampler, self.batch_size = sampler, batch_size
        self.drop_last, self.pool = drop_last, pool
        self._lengths = lengths

    def __len__(self) -> int:
        total = len(self.sampler) if isinstance(self.sampler, Sized) else 0
        spare = 0 if self.drop_last else self.batch_size - 1
        return (total + spare) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        epoch = getattr(self.sampler, 'epoch', 0)
        draw = random.Random(f'{getattr(self.sampler, "seed", 0)} {epoch}')
        order = list(self.sampler)
        size = self.batch_size * self.pool
        for start in range(0, len(order), size):
            pool = sorted(order[start : start + size], key=self._length)
            batches = [
                pool[first : first + self.batch_size]
                for first in range(0, len(pool), self.batch_size)
            ]
            if self.drop_last and len(batches[-1]) < self.batch_size:
                batches.pop()
            draw.shuffle(batches)
            yield from batches

    def _length(self, index: int) -> int:
        return self._lengths[index]
