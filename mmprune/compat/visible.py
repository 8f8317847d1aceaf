"""Compiled kernels of mmcv, for those who read what PyTorch executes."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def visible_ops(names: Iterable[str] = ()) -> Iterator[None]:
    """Lets mmcv's wrappers call our functions for a while, whatever is
    compiled.

    PyTorch does not see what a compiled kernel reads and writes: its outputs
    would belong to no channel, and its multiply-adds would not count.

    Args:
        names: Of these, without any of all: ours take longer.
    """
    module = sys.modules.get('mmcv._ext')
    if module is None:
        yield
        return
    from .ops import TABLE

    compiled = {
        n: getattr(module, n) for n in names or TABLE if hasattr(module, n)
    }
    try:
        vars(module).update((name, TABLE[name]) for name in compiled)
        yield
    finally:
        vars(module).update(compiled)
