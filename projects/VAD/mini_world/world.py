"""Writes the drawn town as a nuScenes dataset."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from projects.VAD.mini_world.map_expansion import drivable_mask, map_expansion
from projects.VAD.mini_world.names import scene_names
from projects.VAD.mini_world.scene_files import LOCATION, World, write_scene
from projects.VAD.mini_world.scenes import compose_scene
from projects.VAD.mini_world.tables import TABLES, fixed_tables, token_maker
from projects.VAD.mini_world.town import build_town
from projects.VAD.mini_world.tracks import FRAMES
from projects.VAD.mini_world.traffic import conflicting_ways

# BitMap of nuscenes-devkit looks for the mask of that place under this name.
MASK = 'maps/36092f0b03a857c6a3403e25b4b7aab3.png'
EPOCH_US = 1_530_000_000_000_000
SCENE_GAP_US = 3_600_000_000


def write_world(
    out: str | Path,
    seed: int = 0,
    scenes: int = 10,
    size: tuple[int, int] = (400, 225),
    force: bool = False,
    progress: Callable[[str], object] = lambda name: None,
    workers: int = 1,
) -> Path:
    """Draws a world and writes it as a nuScenes dataset.

    Args:
        out: Folder of the dataset. It appears when all of it is written.
        seed: The same seed gives the same files, byte by byte.
        scenes: Number of scenes of 20 seconds.
        size: Width and height of the pictures.
        force: Whether to replace a folder that is not empty.
        progress: Is called with the name of each stage, ``scenes + 2`` in
            all.
        workers: Processes that draw. How many does not change a byte.

    Returns:
        ``out``.

    Raises:
        ValueError: If the folder is not empty, or for a number of scenes or
            a size that cannot be.
    """
    out = Path(out)
    version, names = scene_names(scenes)
    check_size(size)
    _check_place(out, force)
    beside = out.with_name(f'.{out.name}.part')
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        progress('town')
        world = empty_world(beside, seed, size)
        drawn = _written_scenes(world, names, seed, workers)
        for (name, _), tables in zip(names, drawn, strict=True):
            progress(name)
            for table, rows in tables.items():
                world.tables[table] += rows
        progress('tables and map')
        mask = cv2.imencode('.png', drivable_mask(world.town))[1]
        write_tables(world, version, mask.tobytes())
        _replace(out, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out


def empty_world(
    root: Path,
    seed: int,
    size: tuple[int, int],
    frames: int | None = None,
    drawn: Sequence[int] | None = None,
) -> World:
    """Returns a world without a scene.

    Args:
        root: Folder of the dataset.
        seed: Decides the town.
        size: Width and height of the pictures.
        frames: Key frames of each scene; by default those of 20 seconds.
        drawn: Which of them get pictures and a sweep; all by default.
    """
    town = build_town(np.random.default_rng([seed, 0]))
    token = token_maker(seed)
    tables: dict[str, list[dict]] = {name: [] for name in TABLES}
    tables |= fixed_tables(token, size)
    return World(root, town, size, token, tables, frames or FRAMES, drawn)


def write_tables(world: World, version: str, mask: bytes) -> None:
    """Writes the map and the tables, when all scenes are written.

    Args:
        world: With its scenes.
        version: Name of the tables' folder.
        mask: PNG of the drivable area, which the devkit wants to be there.
    """
    _write_map(world, mask)
    for name in TABLES:
        _write_json(world.root / version / f'{name}.json', world.tables[name])


def _written_scenes(
    world: World, names: list[tuple[str, bool]], seed: int, workers: int
) -> Iterator[dict[str, list[dict]]]:
    """Writes the files of all scenes; yields the rows of each, in order."""
    conflicts = conflicting_ways(world.town)
    write = partial(_written_scene, world, conflicts, seed)
    jobs = [(i, *name) for i, name in enumerate(names)]
    if workers < 2:
        yield from map(write, jobs)
        return
    # Forked processes have the town already; only rows are sent.
    context = multiprocessing.get_context('fork')
    with ProcessPoolExecutor(workers, context, _remember, (write,)) as pool:
        yield from pool.map(_remembered, jobs)


def _remember(write: Callable) -> None:
    """Keeps, in a process that draws, what it draws with."""
    global _write
    _write = write


def _remembered(job: tuple[int, str, bool]) -> dict[str, list[dict]]:
    return _write(job)


def _written_scene(
    world: World,
    conflicts: set[tuple[int, int]],
    seed: int,
    job: tuple[int, str, bool],
) -> dict[str, list[dict]]:
    """Writes the files of one scene; returns its rows."""
    i, name, held_out = job
    own = replace(world, tables={table: [] for table in TABLES})
    rng = np.random.default_rng([seed, 1, i])
    scene = compose_scene(world.town, conflicts, rng, held_out)
    write_scene(own, scene, name, EPOCH_US + i * SCENE_GAP_US, rng)
    return own.tables


def all_cores() -> int:
    """How many processes this one may run beside each other."""
    return len(os.sched_getaffinity(0))


def check_size(size: tuple[int, int]) -> None:
    """Refuses pictures that cannot be drawn.

    Raises:
        ValueError: If a side is too short or too long.
    """
    if min(size) < 16 or max(size) > 4000:
        raise ValueError(
            f'the pictures are to be {size[0]}x{size[1]} pixels; give between '
            '16 and 4000 for each side'
        )


def _check_place(out: Path, force: bool) -> None:
    if out.name in ('', '..'):
        raise ValueError(f'{out} has no name of its own; name a folder')
    if out.exists() and not out.is_dir():
        raise ValueError(f'{out} is a file; name a folder')
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ValueError(
            f'{out} is not empty; name another folder or replace it with '
            '--force'
        )


def _replace(out: Path, beside: Path) -> None:
    old = out.with_name(f'.{out.name}.replaced')
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    beside.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding='ascii')


def _write_map(world: World, mask: bytes) -> None:
    maps = world.root / 'maps'
    content = map_expansion(
        world.town, lambda name: world.token(f'map {name}')
    )
    _write_json(maps / 'expansion' / f'{LOCATION}.json', content)
    for path in (world.root / MASK, maps / 'basemap' / f'{LOCATION}.png'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mask)
    world.tables['map'] = [
        dict(
            token=world.token('map'),
            category='semantic_prior',
            filename=MASK,
            log_tokens=[row['token'] for row in world.tables['log']],
        )
    ]
