"""What tools/setup_env.py decides; only the commands it runs are faked."""

import fcntl
import importlib.util
import itertools
import os
import re
import runpy
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / 'tools' / 'setup_env.py'
SPEC = importlib.util.spec_from_file_location('setup_env', SCRIPT)
setup_env = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(setup_env)


class Commands:
    """Runs nothing: makes what the real commands would leave behind."""

    def __init__(self, python: str = '3.11', **status: int) -> None:
        self.python, self.status, self.seen = python, status, []

    def __call__(self, command: list) -> tuple[int, str]:
        words = [str(word) for word in command]
        kind = self.kind(words)
        self.seen.append(kind)
        if self.status.get(kind):
            return self.status[kind], f'{kind} went wrong'
        if kind == 'version':
            return 0, self.python.replace('.', ' ')
        if kind == 'venv':
            self.make(Path(words[-1]))
        return 0, ''

    def kind(self, words: list[str]) -> str:
        """Returns a short name of a command."""
        for name, sign in [
            ('version', 'ensurepip'),
            ('venv', ' -m venv '),
            ('probe', 'pip --version'),
            ('pins', ' -r '),
            ('opencv', '--force-reinstall'),
            ('project', ' -e '),
            ('import', 'find_spec'),
        ]:
            if sign in ' '.join(words):
                return name
        raise AssertionError(f'a command nobody expected: {words}')

    def make(self, folder: Path) -> None:
        """Makes the files of an environment that are looked at."""
        (folder / 'bin').mkdir()
        (folder / 'bin' / 'python').touch()
        (folder / 'pyvenv.cfg').write_text(f'version = {self.python}.7\n')
        torch = folder / 'lib' / f'python{self.python}' / 'site-packages/torch'
        torch.mkdir(parents=True)
        (torch / '__init__.py').touch()


FRESH = ['version', 'venv', 'pins', 'opencv', 'project', 'import']
MEND = ['probe', 'pins', 'opencv', 'project', 'import']


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A project folder with room on its disk and nothing set up."""
    (tmp_path / 'requirements.lock').write_text(
        'opencv-python-headless==4.11.0.86\n'
    )
    (tmp_path / 'setup.py').touch()
    give_disk(monkeypatch, 100)
    return tmp_path


def give_disk(monkeypatch, free_gb: float) -> None:
    """Makes every disk have that much room."""
    usage = (0, 0, free_gb * 1e9)
    usage = type(setup_env.shutil.disk_usage('/'))(*map(int, usage))
    monkeypatch.setattr(setup_env.shutil, 'disk_usage', lambda _: usage)


def run(root: Path, commands: Commands | None = None, **options) -> list[str]:
    """Sets a project up and returns the commands that this took."""
    commands = commands or Commands()
    setup_env.set_up(root, run=commands, **options)
    return commands.seen


@pytest.mark.parametrize(
    ('version', 'fit'),
    [
        ((2, 7), False),
        ((3, 9, 18), False),
        ((3, 10), True),
        ((3, 11, 7), True),
        ((3, 12, 1), True),
        ((3, 13), False),
        ((), False),
    ],
)
def test_python_3_10_to_3_12_are_supported(version, fit):
    assert setup_env.is_supported(version) is fit


def test_the_versions_are_those_of_setup_py():
    text = (ROOT / 'setup.py').read_text()
    oldest = '.'.join(map(str, setup_env.OLDEST))
    beyond = f'{setup_env.NEWEST[0]}.{setup_env.NEWEST[1] + 1}'
    assert f"python_requires='>={oldest},<{beyond}'" in text


def test_the_version_is_asked_of_the_interpreter_itself():
    assert setup_env.python_version(sys.executable) == sys.version_info[:2]
    assert setup_env.python_version('/no/such/python') == ()


def test_another_python_on_path_is_taken_if_this_one_is_unfit(
    root, monkeypatch
):
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: f'/x/{name}')

    def answer(command):
        return 0, '3 11' if command[0] == '/x/python3.11' else '3 9'

    chosen = setup_env.choose_python(root / '.venv', exact=False, run=answer)
    assert chosen == '/x/python3.11'


def test_no_fit_python_is_one_sentence(root, monkeypatch):
    monkeypatch.setattr(setup_env.shutil, 'which', lambda _: None)
    with pytest.raises(setup_env.SetupError, match='3.10, 3.11 or 3.12 with'):
        run(root, Commands('3.9'))
    assert not (root / '.venv').exists()


def test_an_unfit_python_named_by_the_user_is_not_replaced(root, monkeypatch):
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: f'/x/{name}')
    commands = Commands('3.13')
    with pytest.raises(setup_env.SetupError, match='install one or name it'):
        run(root, commands, exact=True)
    assert commands.seen == ['version']


def test_too_little_disk_is_said_before_anything_is_installed(
    root, monkeypatch
):
    give_disk(monkeypatch, 5)
    commands = Commands()
    with pytest.raises(setup_env.SetupError, match='has 5.0 GB'):
        run(root, commands)
    assert commands.seen == ['version']


def test_a_second_call_runs_no_command(root):
    assert run(root) == FRESH
    assert run(root) == []


@pytest.mark.parametrize('name', ['requirements.lock', 'setup.py'])
def test_changed_requirements_are_installed(root, name):
    run(root)
    with (root / name).open('a') as file:
        file.write('# changed\n')
    assert run(root) == MEND
    assert run(root) == []


def test_a_moved_project_is_installed_again(root, tmp_path_factory):
    run(root)
    moved = tmp_path_factory.mktemp('elsewhere') / 'moved'
    root.rename(moved)
    assert run(moved) == MEND
    moved.rename(root)


def test_an_environment_made_by_hand_is_completed(root):
    (root / '.venv').mkdir()
    Commands().make(root / '.venv')
    assert run(root) == MEND


@pytest.mark.parametrize('step', ['venv', 'pins', 'opencv', 'project'])
def test_a_set_up_stopped_in_the_middle_starts_anew(root, step):
    with pytest.raises(setup_env.SetupError, match='ended with status 1'):
        run(root, Commands(**{step: 1}))
    left = root / '.venv' / 'half-written'
    left.mkdir()
    assert run(root) == FRESH
    assert not left.exists()


def test_a_change_stopped_in_the_middle_starts_anew(root):
    run(root)
    (root / 'requirements.lock').write_text('torch==2.11.0\n')
    with pytest.raises(setup_env.SetupError):
        run(root, Commands(pins=137))
    assert run(root) == [kind for kind in FRESH if kind != 'opencv']


@pytest.mark.parametrize('lost', ['bin/python', 'pyvenv.cfg'])
def test_an_environment_without_its_python_is_made_anew(root, lost):
    run(root)
    (root / '.venv' / lost).unlink()
    if lost == 'pyvenv.cfg':
        with pytest.raises(setup_env.SetupError, match='move it away'):
            run(root)
        return
    assert run(root) == FRESH


def test_an_environment_without_torch_is_mended(root):
    run(root)
    (torch,) = (root / '.venv').glob('lib/python*/site-packages/torch')
    (torch / '__init__.py').unlink()
    assert run(root) == MEND


def test_an_environment_without_pip_is_made_anew(root):
    run(root)
    (root / '.venv' / 'mmprune-stamp').unlink()
    assert run(root, Commands(probe=1)) == ['probe', *FRESH]


def test_what_cannot_be_mended_is_made_anew_once(root):
    run(root)
    (root / '.venv' / 'mmprune-stamp').unlink()
    commands = Commands(**{'import': 1})
    with pytest.raises(setup_env.SetupError, match='import went wrong'):
        run(root, commands)
    assert commands.seen == [*MEND, *FRESH]
    assert not (root / '.venv' / 'mmprune-stamp').exists()


def test_the_environments_python_counts_unless_one_is_named(root):
    other = '3.12' if sys.version_info[:2] != (3, 12) else '3.11'
    run(root, Commands(other))
    assert run(root) == []
    own = '.'.join(map(str, sys.version_info[:2]))
    assert run(root, Commands(own), exact=True) == FRESH


def test_a_folder_that_is_no_environment_is_left_alone(root):
    (root / '.venv').mkdir()
    (root / '.venv' / 'thesis.tex').touch()
    with pytest.raises(setup_env.SetupError, match='move it away'):
        run(root)
    assert (root / '.venv' / 'thesis.tex').exists()


def test_a_failed_command_on_a_full_disk_names_the_disk(root, monkeypatch):
    class Full(Commands):
        def __call__(self, command):
            if self.kind([str(word) for word in command]) == 'pins':
                give_disk(monkeypatch, 0.1)
                return 1, 'OSError: [Errno 28]'
            return super().__call__(command)

    with pytest.raises(setup_env.SetupError, match='has 0.1 GB'):
        run(root, Full())


def test_two_calls_do_not_work_at_once(root):
    busy = []

    class Watched(Commands):
        def __call__(self, command):
            with (root / 'requirements.lock').open('ab') as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    busy.append(True)
            return super().__call__(command)

    assert run(root, Watched()) == FRESH
    assert len(busy) == len(FRESH)


def test_a_child_that_outlives_the_set_up_keeps_the_lock(root):
    lock = root / 'requirements.lock'
    with setup_env.locked(lock):
        child = subprocess.Popen(
            [sys.executable, '-c', 'input()'],
            stdin=subprocess.PIPE,
            close_fds=False,
        )
    with lock.open('ab') as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.communicate(b'\n')
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_foreign_python_settings_do_not_reach_the_commands(monkeypatch):
    monkeypatch.setenv('PYTHONPATH', '/opt/ros/packages')
    monkeypatch.setenv('PIP_USER', '1')
    code = 'import os; print(os.getenv("PYTHONPATH"), os.environ["PIP_USER"])'
    assert setup_env.run_command([sys.executable, '-c', code]) == (
        0,
        'None 0\n',
    )


def test_the_script_reports_a_wrong_python_and_ends_with_2(tmp_path):
    (tmp_path / 'tools').mkdir()
    script = tmp_path / 'tools' / 'setup_env.py'
    text = SCRIPT.read_text().replace('(3, 10), (3, 12)', '(4, 0), (4, 1)')
    script.write_text(text)
    (tmp_path / 'requirements.lock').touch()
    done = subprocess.run(
        [sys.executable, script, '--exact'], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith('set-up: mmprune needs Python 3.10')
    assert len(done.stderr.splitlines()) == 1


def lock_lines() -> list[Requirement]:
    """Returns the pins of requirements.lock."""
    lines = (ROOT / 'requirements.lock').read_text().splitlines()
    return [Requirement(line) for line in lines if line[:1] not in ('', '#')]


def pins_for(python: str) -> dict[str, str]:
    """Returns name -> version of the pins of a Python on Linux."""
    env = {'python_version': python, 'platform_system': 'Linux'}
    pins = {}
    for pin in lock_lines():
        if pin.marker is None or pin.marker.evaluate(env):
            assert pin.name not in pins, f'{pin.name} is pinned twice'
            pins[pin.name] = str(pin.specifier).removeprefix('==')
    return pins


def declared(monkeypatch) -> list[Requirement]:
    """Returns the ranges that setup.py states, all extras included."""
    stated = {}
    monkeypatch.setattr('setuptools.setup', lambda **data: stated.update(data))
    runpy.run_path(str(ROOT / 'setup.py'))
    extras = stated['extras_require'].values()
    lines = [*stated['install_requires'], *itertools.chain(*extras)]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize(
    ('installed', 'required'), [('mmcv', False), ('mmcv-lite', True)]
)
def test_a_full_mmcv_is_not_overwritten_by_mmcv_lite(
    tmp_path, monkeypatch, installed, required
):
    info = tmp_path / f'{installed.replace("-", "_")}-2.1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Name: {installed}\nVersion: 2.1.0\n')
    monkeypatch.setattr(sysconfig, 'get_path', lambda _: str(tmp_path))
    names = [item.name for item in declared(monkeypatch)]
    assert ('mmcv-lite' in names) is required


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12'])
def test_each_pin_is_exact_and_lies_in_the_range_of_setup_py(
    python, monkeypatch
):
    pins = pins_for(python)
    ranges = declared(monkeypatch)
    assert len(ranges) > 15
    for item in ranges:
        assert pins[item.name] in item.specifier, item


def test_the_two_opencv_packages_have_one_version():
    pins = pins_for('3.11')
    assert pins['opencv-python'] == pins['opencv-python-headless']


def test_gpu_libraries_are_asked_for_on_linux_only():
    for pin in lock_lines():
        if re.match('nvidia-|cuda-|triton$', pin.name):
            assert pin.marker is not None
            assert not Marker(str(pin.marker)).evaluate(
                {'platform_system': 'Darwin', 'python_version': '3.11'}
            )


def test_the_installed_packages_are_the_pinned_ones():
    python = '.'.join(map(str, sys.version_info[:2]))
    found = {
        canonicalize_name(item.metadata['Name']): item.version
        for item in distributions(path=[sysconfig.get_path('purelib')])
    }
    wrong = {
        name: found.get(name)
        for name, pin in pins_for(python).items()
        if found.get(name) != pin
    }
    if not os.environ.get('CI') and wrong:
        pytest.skip(f'not the environment of the set-up: {wrong}')
    assert wrong == {}
