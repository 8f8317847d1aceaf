"""Compiled kernels of mmcv, for those who read what PyTorch executes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def visible_ops() -> Iterator[None]:
    """Lets mmcv's wrappers call our functions for a while, whatever is
    compiled.

    PyTorch does not see what a compiled kernel reads and writes: its outputs
    would belong to no channel, and its multiply-adds would not count.
    """
    module = sys.modules.get('mmcv._ext')
    if module is None:
        yield
        return
    from .ops import TABLE

    compiled = {n: getattr(module, n) for n in TABLE if hasattr(module, n)}
    try:
        for name in compiled:
            setattr(module, name, TABLE[name])
        yield
    finally:
        for name, function in compiled.items():
            setattr(module, name, function)
