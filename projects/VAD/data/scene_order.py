"""Keyframes by time, those of a scene together."""

from collections.abc import Sequence
from typing import Any


def in_order(keyframes: list[dict]) -> list[dict]:
    """Returns keyframes by time, those of a scene together.

    Without the time of every one of them they keep their order.

    Args:
        keyframes: Each with a ``scene_token`` and, if known, a
            ``timestamp``.
    """
    if any('timestamp' not in keyframe for keyframe in keyframes):
        return keyframes
    starts: dict[str, float] = {}
    for keyframe in keyframes:
        scene, time = keyframe['scene_token'], keyframe['timestamp']
        starts[scene] = min(time, starts.get(scene, time))
    return sorted(
        keyframes,
        key=lambda k: (
            starts[k['scene_token']],
            k['scene_token'],
            k['timestamp'],
        ),
    )


def places(entries: Sequence[Any]) -> list[int]:
    """Returns the places of an info file's records in that order.

    Sorting the records costs little, converting them a millisecond each.

    Args:
        entries: Records as the file has them; one may be broken.
    """
    marks = [_mark(entry, place) for place, entry in enumerate(entries)]
    return [mark['place'] for mark in in_order(marks)]


def _mark(entry: Any, place: int) -> dict:
    """What decides about the place of a record."""
    entry = entry if isinstance(entry, dict) else {}
    # Without a scene each is one of its own.
    mark = dict(place=place, scene_token=str(place))
    for key in ('scene_token', 'timestamp'):
        if key in entry:
            mark[key] = entry[key]
    return mark
