"""Refuses values that an option cannot have."""

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
