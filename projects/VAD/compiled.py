"""Loops that NumPy and PyTorch have no fast word for, compiled by numba."""

from collections.abc import Callable

from numba import njit


def compiled(function: Callable | None = None, **options) -> Callable:
    """Compiles a function, once for all runs where that can be kept.

    Args:
        function: What to compile.
        options: Of numba's ``njit``.
    """
    if function is None:
        return lambda one: compiled(one, **options)
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package nor the home can be written
        return njit(**options)(function)
