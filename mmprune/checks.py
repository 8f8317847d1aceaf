"""Refuses values that an option cannot have."""

import re
from collections.abc import Sequence


def check_sparsity(sparsity: float) -> None:
    """Raises ``ValueError`` if a sparsity is outside ``[0, 1)``."""
    if not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise ValueError(
            f'the fraction to remove must be in [0, 1), found {sparsity!r}'
        )


def check_choice(name: str, value: object, choices: Sequence) -> None:
    """Raises ``ValueError`` if a value is none of the choices."""
    if value not in choices:
        shown = ', '.join(map(repr, choices))
        raise ValueError(f'{name} must be one of {shown}, found {value!r}')


def check_whole(name: str, value: object, least: int) -> None:
    """Raises ``ValueError`` if a value is no whole number from ``least``."""
    if not isinstance(value, int) or value < least:
        raise ValueError(
            f'{name} must be a whole number of at least {least}, found '
            f'{value!r}'
        )


def parse_pattern(pattern: str) -> tuple[int, int]:
    """Returns N and M of ``'N:M'``: N of every M weights are kept.

    Raises:
        ValueError: If it is no such pattern.
    """
    match = re.fullmatch(r'(\d+):(\d+)', str(pattern))
    kept, size = map(int, match.groups()) if match else (0, 0)
    if not 0 < kept < size:
        raise ValueError(
            f'a pattern is N:M with 0 < N < M, as 2:4, found {pattern!r}'
        )
    return kept, size
