"""The users' guides: their commands run as they stand there."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_docs import parse
from tiny_project import write_checkpoint, write_config

STRUCT = ROOT / 'tools' / 'analysis_tools' / 'analysis_struct.py'
DOOR = ROOT / 'tools' / 'guides' / 'main_imp_fillback.py'
ALL = ROOT / 'tools' / 'guides' / 'run_vit_small_70p_all.sh'
# Scripts of the guides -> ours.
SCRIPTS = {
    'tools/analysis_tools/analysis_struct.py': ROOT
    / 'tools/prune_and_retrain.py',
    'tools/test.py': ROOT / 'tools/test.py',
    'main_imp_fillback.py': DOOR,
}


def commands(text: str) -> list[list[str]]:
    """The words of each command in the code blocks of a guide."""
    blocks = re.findall(r'```bash\n(.*?)```', text, re.S)
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    return [shlex.split(line, comments=True) for line in lines if line]


def test_every_command_of_the_guides_takes_its_flags(shared, monkeypatch):
    count = 0
    for guide in sorted((shared / 'seeds').glob('00[01]_*.txt')):
        for words in commands(guide.read_text()):
            script = next((w for w in words if w in SCRIPTS), None)
            if script is None or '...' in words:
                continue
            flags = words[words.index(script) + 1 :]
            with monkeypatch.context() as patch:
                found = parse(patch, SCRIPTS[script], flags).found
            assert found.launcher in ('none', 'pytorch')
            count += 1
    assert count >= 9


# -- 000: prune, fine-tune, retrain ----------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with what the guide calls its config and weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    for name in ('projects/configs/VAD', 'ckpts'):
        (tmp_path / name).mkdir(parents=True)
    write_config(tmp_path).rename('projects/configs/VAD/VAD_tiny_stage_2.py')
    path = write_checkpoint(tmp_path, momentum=True, epoch=1)
    path.rename('ckpts/VAD_tiny.pth')
    return tmp_path


def guide(monkeypatch, flags: str) -> None:
    """Runs a command of the guide, whose config and checkpoint are tiny."""
    line = 'projects/configs/VAD/VAD_tiny_stage_2.py ckpts/VAD_tiny.pth '
    line += '--pruning-ratio 0.1 --output-dir ckpts/pruned --latency-runs 0'
    words = [str(STRUCT), *line.split(), *flags.split()]
    monkeypatch.setattr(sys, 'argv', words)
    runpy.run_path(str(STRUCT), run_name='__main__')


def test_prune_then_fine_tune_then_retrain_into_one_folder(
    folder, monkeypatch, capsys
):
    guide(monkeypatch, '')
    out = folder / 'ckpts' / 'pruned'
    weights = out / 'tiny_structured_pruned.pth'
    stamp = weights.stat().st_mtime_ns
    one = ' --gpus 1 --gpu-ids 0'
    guide(monkeypatch, '--fine-tune --fine-tune-epochs 2' + one)
    guide(monkeypatch, '--fine-tune --retrain --fine-tune-epochs 3' + one)
    assert weights.stat().st_mtime_ns == stamp
    said = capsys.readouterr().out
    assert said.count('the pruned models are in ckpts/pruned already') == 2
    assert '--gpu-ids has no effect, this runs on the CPU' in said
    for place, last in (('fine_tuned', 'epoch_3'), ('retrained', 'epoch_3')):
        names = {p.name for p in (out / place).iterdir()}
        assert {'VAD_tiny_stage_2.py', 'latest.pth', f'{last}.pth'} <= names
    metrics = json.loads((out / 'report.json').read_text())['metrics']
    assert list(metrics) == [
        *('dense', 'unstructured', 'structured', 'fine_tuned', 'recovered')
    ]


@pytest.mark.parametrize(
    ('again', 'message'),
    [
        ('', 'holds another run (fine_tuned, plan.json'),
        ('--fine-tune --fine-tune-epochs 2', 'holds another run (fine_tuned'),
        (
            '--fine-tune --retrain --pruning-ratio 0.3',
            'was done otherwise (sparsity 0.1 there, 0.3 now)',
        ),
    ],
)
def test_no_command_destroys_what_another_one_wrote(
    folder, monkeypatch, capsys, again, message
):
    guide(monkeypatch, '--fine-tune --fine-tune-epochs 1 --no-eval')
    before = {p: p.stat().st_mtime_ns for p in Path('ckpts/pruned').rglob('*')}
    with pytest.raises(SystemExit) as end:
        guide(monkeypatch, again)
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and '--force' in error
    assert '--resume' in error or 'otherwise' in error
    assert before == {
        p: p.stat().st_mtime_ns for p in Path('ckpts/pruned').rglob('*')
    }


# -- 001: four experiments at once -----------------------------------------


def test_the_script_of_the_four_experiments_starts_what_the_guide_says(
    tmp_path, monkeypatch
):
    """A stand-in for Python writes down what it is asked to run."""
    python = tmp_path / 'python'
    python.write_text(
        '#!/bin/sh\necho "GPU $CUDA_VISIBLE_DEVICES"\necho "$@"\n'
        'echo "pruning state: 0 finished, * Acc@1: 50.0"\n'
    )
    python.chmod(0o755)
    done = subprocess.run(
        [ALL, '--epochs', '1'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHON': str(python)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    logs = sorted((tmp_path / 'logs_vit_small_70p').glob('*.log'))
    assert [path.stem for path in logs] == [
        *('cifar100_refill', 'cifar100_rsst'),
        *('cifar10_refill', 'cifar10_rsst'),
    ]
    for path in logs:
        data, method = path.stem.split('_')
        gpu, line, state = path.read_text().splitlines()
        assert gpu == f'GPU {int(data == "cifar100")}'
        assert 'pruning state' in state and 'Acc@1' in state
        words = line.split()
        assert words[:2] == ['-u', str(DOOR)]
        with monkeypatch.context() as patch:
            found = parse(patch, DOOR, words[2:]).found
        assert (found.dataset, found.struct) == (data, method)
        assert found.data == f'data/{data}' and found.epochs == 1
        assert found.save_dir == f'checkpoint/vit_small_70p/{path.stem}'
        assert (found.exponents == 4) == (method == 'rsst')
        assert found.vit_structured and found.rate == 0.7


def test_an_experiment_that_fails_is_named(tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "error: no data"\nexit 2\n')
    python.chmod(0o755)
    done = subprocess.run(
        [ALL],
        cwd=tmp_path,
        env={**os.environ, 'PYTHON': str(python)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert 'error: cifar10_rsst failed: error: no data' in done.stderr


# -- the shell scripts find their Python -----------------------------------


@pytest.mark.parametrize('name', ['dist_train', 'dist_test', 'slurm_train'])
def test_the_scripts_use_the_python_of_the_project(name):
    text = (ROOT / 'tools' / f'{name}.sh').read_text()
    assert 'PYTHON=$("$TOOLS/python.sh")' in text
    assert not re.search(r'^\s*(exec )?python ', text, re.M)


def test_which_python_that_is(tmp_path):
    tools = tmp_path / 'tools'
    tools.mkdir()
    script = tools / 'python.sh'
    script.write_bytes((ROOT / 'tools' / 'python.sh').read_bytes())
    script.chmod(0o755)

    def found(**env: str) -> str:
        plain = {k: v for k, v in os.environ.items() if k != 'PYTHON'}
        done = subprocess.run(
            [script], env={**plain, **env}, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert Path(found()).name in ('python', 'python3')  # of the PATH
    (tmp_path / '.venv' / 'bin').mkdir(parents=True)
    (tmp_path / '.venv' / 'bin' / 'python').symlink_to(sys.executable)
    assert found().endswith('.venv/bin/python')
    assert found(PYTHON=sys.executable) == sys.executable
