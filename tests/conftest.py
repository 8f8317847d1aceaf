"""Fixtures that every test may use."""

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if 'PYTEST_XDIST_WORKER' in os.environ:
    # Workers share the cores, and so do the processes that tests start.
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import mmprune  # noqa: E402, F401  (serves mmcv's ops before mmdet3d loads)


def pytest_collection_finish() -> None:
    """Keeps what the imports made out of every later garbage collection.

    mmengine collects garbage for each data set that it builds, which takes
    longer than most tests if all of torch is looked through.
    """
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter) -> None:
    """Says at the end how many tests did not run for want of a browser."""
    skipped = terminalreporter.stats.get('skipped', [])
    count = sum('browser' in report.keywords for report in skipped)
    if count:
        terminalreporter.write_line(
            f'{count} tests of the page in a browser did NOT run: there is no '
            'Chromium here (on Debian: apt-get install chromium)'
        )


@pytest.fixture(scope='session')
def shared() -> Path:
    """The folder of real data, golden outputs and manifests.

    Its place is the environment variable ``MMPRUNE_SHARED``; the default is
    ``../shared`` beside the checkout. Tests that need it skip without it.
    """
    path = Path(os.environ.get('MMPRUNE_SHARED', ROOT.parent / 'shared'))
    if not path.is_dir():
        pytest.skip(f'no shared data at {path}; set MMPRUNE_SHARED')
    return path.resolve()


@pytest.fixture(scope='session')
def reported_run(tmp_path_factory) -> Path:
    """A run with a report and a log; a test may write its page anew."""
    from tiny_report import train

    return train(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='session')
def converted(tmp_path_factory) -> Path:
    """The tiny nuScenes folder with its info files; tests only read it."""
    from tiny_nuscenes import write_nuscenes

    from tools import create_data

    root = write_nuscenes(tmp_path_factory.mktemp('nuscenes'))
    create_data.main(['nuscenes', '--root-path', str(root)])
    return root


@pytest.fixture
def converted_copy(converted, tmp_path) -> Path:
    """A copy of the folder that a test may change."""
    return Path(shutil.copytree(converted, tmp_path / 'moved'))


@pytest.fixture(scope='module')
def pipelines() -> dict[str, list[dict]]:
    """VAD's shipped pipelines; 160x90 pictures become 80x45, then 96x64."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet3d')
    config = Config.fromfile(ROOT / 'projects/configs/_base_/vad_nuscenes.py')
    out = {}
    for name in ('train', 'test'):
        steps = config[f'{name}_pipeline']
        steps[-3].scales = [0.5]
        out[name] = steps
    return out


@pytest.fixture(scope='session')
def drawn_world(tmp_path_factory) -> Path:
    """The folder of a drawn world of two scenes; tests only read it."""
    from drawn_scenes import SIZE

    from projects.VAD.mini_world.world import write_world

    folder = tmp_path_factory.mktemp('world') / 'mini'
    return write_world(folder, seed=0, scenes=2, size=SIZE)


@pytest.fixture(scope='session')
def nusc(drawn_world):
    """The tables of the drawn world, as nuscenes-devkit reads them."""
    from nuscenes.nuscenes import NuScenes

    return NuScenes('v1.0-mini', str(drawn_world), verbose=False)


@pytest.fixture(scope='session')
def nusc_map(drawn_world):
    """The map of the drawn world, as nuscenes-devkit reads it."""
    from nuscenes.map_expansion.map_api import NuScenesMap

    from projects.VAD.mini_world.scene_files import LOCATION

    return NuScenesMap(str(drawn_world), LOCATION)


@pytest.fixture(scope='session')
def town():
    """The town that the drawn world lies in."""
    from numpy.random import default_rng

    from projects.VAD.mini_world.town import build_town

    return build_town(default_rng([0, 0]))


@pytest.fixture(scope='session', autouse=True)
def plain_configs() -> Iterator[None]:
    """Configs are written as they are, after a check of their syntax.

    mmengine has yapf lay out the config of each Runner. For a run of seconds
    that takes most of the time, and thrice as long where paths are long. The
    commands that tests start as processes still do it.
    """

    def check(text: str, **style) -> tuple[str, bool]:
        compile(text, '<config>', 'exec')
        return text, False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.config.config.FormatCode', check)
        yield


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)
