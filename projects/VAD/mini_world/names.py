"""Names of scenes that nuscenes-devkit knows as training or validation."""

from nuscenes.utils.splits import create_splits_scenes

MINI, FULL = 'v1.0-mini', 'v1.0-trainval'
HELD_OUT_FRACTION = 0.2
# NuScenesCanBus refuses these (can_bus_api.py, `can_blacklist`).
WITHOUT_CAN_BUS = {*range(161, 177), *range(309, 315)}


def scene_names(count: int) -> tuple[str, list[tuple[str, bool]]]:
    """Returns the version, and name and whether held out of each scene.

    The devkit's splits are lists of names that belong to a version. Up to
    ten scenes take the names of v1.0-mini; more need v1.0-trainval, where
    they come first (they belong to its splits as well). A fifth is
    held out for validation.

    Args:
        count: Number of scenes.

    Raises:
        ValueError: If the devkit has not that many names.
    """
    splits = create_splits_scenes()
    train, val = splits['mini_train'], splits['mini_val']
    version = MINI
    if count > len(train) + len(val):
        version = FULL
        first = set(train) | set(val)
        train = _usable(train, splits['train'], first)
        val = _usable(val, splits['val'], first)
    held_out = max(1, round(count * HELD_OUT_FRACTION)) if count > 1 else 0
    if count < 1 or held_out > len(val) or count - held_out > len(train):
        raise ValueError(
            f'a world of {count} scenes was asked for; it has between 1 and '
            f'{min(len(train) * 5 // 4, len(val) * 5)}'
        )
    return version, [
        *((name, False) for name in train[: count - held_out]),
        *((name, True) for name in val[:held_out]),
    ]


def _usable(mini: list[str], split: list[str], first: set[str]) -> list[str]:
    """The mini names of a split and then those with a CAN bus."""
    rest = [
        name
        for name in split
        if name not in first and int(name[-4:]) not in WITHOUT_CAN_BUS
    ]
    return [name for name in mini if name in split] + rest
