"""Launchers, ports and several processes."""

import json
import os
import runpy
import socket
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import ROOT
from tiny_project import CONFIG, write_checkpoint, write_config

from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.run import launch
from mmprune.run.port import check_port, port_is_free

PRUNE = ROOT / 'tools' / 'prune_and_retrain.py'
GUIDE = ROOT / 'tools' / 'analysis_tools' / 'analysis_struct.py'
LIMIT = 400  # seconds after which a hanging run fails
# Two ranks with a sample each; the statistics of the norm stay, since each
# rank would have its own. A warm-up counts samples fetched, not steps done,
# and would be another one where a step takes two fetches; so it stays at 1.
PAIRS = """
model = dict(type='TinyModel', width=16, norm_eval=True)
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='TinyImages', count=6),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1.0, by_epoch=False, begin=0, end=2),
    dict(type='MultiStepLR', by_epoch=True, milestones=[1]),
]
train_cfg = dict(by_epoch=True, max_epochs=2)
env_cfg = dict(dist_cfg=dict(backend='nccl'))
"""


def write_files(folder):
    config = write_config(folder, CONFIG + PAIRS)
    return config, write_checkpoint(folder, momentum=True, epoch=2)


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """What one process trains that accumulates two samples."""
    options = ['--cfg-options', 'optim_wrapper.accumulative_counts=2']
    files = write_files(tmp_path_factory.mktemp('alone'))
    folder, words = command(files, *TRAIN, *options)
    runpy.run_path(str(PRUNE))['main'](list(map(str, words)))
    return folder


def unused_port() -> int:
    """Returns a port that nobody listens on, another one at each call."""
    with socket.socket() as server:
        server.bind(('', 0))
        return server.getsockname()[1]


@pytest.fixture
def taken():
    """A port on which somebody listens."""
    with socket.socket() as server:
        server.bind(('', 0))
        server.listen(1)
        yield server.getsockname()[1]


def execute(words, **env):
    """Runs a command with a time limit; returns what it did."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(('SLURM_', 'OMPI_', 'MASTER_'))
        and name not in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
    }
    path = f'{ROOT / "tests"}:{ROOT}'
    plain.update(PYTHONPATH=path, OMP_NUM_THREADS='1', **env)
    return subprocess.run(
        list(map(str, words)),
        env=plain,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def command(files, *flags):
    folder = files[0].parent / 'out'
    quick = ['--latency-runs', '0', '--no-eval', '--output-dir', folder]
    return folder, [*files, *quick, *flags]


TRAIN = ('--fine-tune', '--fine-tune-epochs', '2', '--mode', 'structured')


@pytest.mark.parametrize('launcher', ['run', 'launch'])
def test_two_ranks_equal_one_process_that_accumulates_two_samples(
    files, alone, launcher
):
    torchrun = [sys.executable, '-m', f'torch.distributed.{launcher}']
    torchrun += ['--nproc_per_node=2', f'--master_port={unused_port()}']
    # The older launcher appends --local-rank; the flags are the guide's.
    guide = ['--gpus', '2', '--gpu-ids', '0', '1', '--launcher', 'pytorch']
    folder, words = command(files, *TRAIN, *guide)
    done = execute([*torchrun, GUIDE, *words])
    assert done.returncode == 0, done.stderr[-3000:]
    found = done.stdout
    assert "distributed run: world_size: 2, devices ['cpu'" in found
    assert found.count('no CUDA device: backend gloo in place of nccl') == 1
    assert '2 ranks hold the same plan and weights' in found
    assert found.count('next: ') == 1  # rank 0 alone speaks and writes
    two = load_checkpoint_file(folder / 'fine_tuned' / 'epoch_4.pth')

    one = load_checkpoint_file(alone / 'fine_tuned' / 'epoch_4.pth')
    start = load_checkpoint_file(alone / 'fine_tuned' / 'start.pth')
    assert one['meta']['iter'] == 2 * two['meta']['iter'] == 24
    moved = 0
    for name, tensor in one['state_dict'].items():
        assert torch.allclose(two['state_dict'][name], tensor, atol=1e-6)
        moved += not torch.equal(tensor, start['state_dict'][name])
    assert moved >= 14


RANKS_AGREE = """
    import hashlib, sys
    import torch.distributed as dist
    from mmengine.config import Config
    from mmprune.run import launch, training
    team = launch.start('pytorch', {}, print)
    cfg = Config.fromfile(sys.argv[1])
    cfg.work_dir, cfg.launcher, cfg.resume = sys.argv[2], 'pytorch', False
    runner = training.runner_for(cfg)
    runner.train()
    weights = runner.model.module.state_dict()
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(weights[name].numpy().tobytes())
    team.same(found.hexdigest(), 'final model')
    print('ranks agree')
    team.same(str(team.rank), 'made-up plan')
"""


def test_both_ranks_end_with_identical_weights_and_a_difference_is_found(
    files, tmp_path
):
    folder, words = command(files, '--fine-tune', '--fine-tune-epochs', '1')
    runpy.run_path(str(PRUNE))['main'](list(map(str, words)))
    script = tmp_path / 'agree.py'
    script.write_text(textwrap.dedent(RANKS_AGREE))
    torchrun = [sys.executable, '-m', 'torch.distributed.run']
    torchrun += ['--nproc_per_node=2', f'--master_port={unused_port()}']
    config = folder / 'fine_tuned' / 'tiny_config.py'
    done = execute([*torchrun, script, config, tmp_path / 'work'])
    assert done.stdout.count('ranks agree') == 2, done.stderr[-3000:]
    assert 'the ranks [1] hold another made-up plan than rank 0' in done.stderr
    assert done.returncode != 0


def test_an_error_of_rank_0_ends_all_ranks(files):
    torchrun = [sys.executable, '-m', 'torch.distributed.run']
    torchrun += ['--nproc_per_node=2', f'--master_port={unused_port()}']
    torch.save({'state_dict': {'x': torch.ones(1)}}, files[1])
    _, words = command(files, '--mode', 'structured')
    done = execute([*torchrun, PRUNE, *words])
    assert done.returncode != 0
    assert done.stderr.count('does not fit the model') == 1


# -- Slurm -----------------------------------------------------------------

# What the real one sets for its tasks, started one after the other here.
SRUN = """
    import os, subprocess, sys
    words = sys.argv[1:]
    told = {w.split('=')[0]: w.split('=')[-1] for w in words if '=' in w}
    at = words.index('-u') - 1  # Python
    number = int(told['--ntasks'])
    tasks = []
    for rank in range(number):
        env = {**os.environ, 'SLURM_PROCID': str(rank),
               'SLURM_LOCALID': str(rank), 'SLURM_NTASKS': str(number),
               'SLURM_NODELIST': 'node[1-1]', 'SLURM_JOB_ID': '7'}
        tasks.append(subprocess.Popen(words[at:], env=env))
    sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """
    import sys
    assert sys.argv[1:] == ['show', 'hostname', 'node[1-1]'], sys.argv
    print('127.0.0.1')
"""


@pytest.fixture
def cluster(tmp_path):
    """A PATH on which srun and scontrol are those of a one-node cluster."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        path = folder / name
        path.write_text(f'#!{sys.executable}\n' + textwrap.dedent(text))
        path.chmod(0o755)
    here = os.path.dirname(sys.executable)
    return f'{folder}:{here}:{os.environ["PATH"]}'


def test_slurm_trains_on_the_tasks_that_srun_starts(files, cluster, tmp_path):
    script = ROOT / 'tools' / 'slurm_train.sh'
    work = tmp_path / 'work'
    done = execute(
        [script, 'debug', 'tiny', files[0], '--work-dir', work],
        PATH=cluster,
        GPUS='2',
        PORT=str(unused_port()),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'distributed run: world_size: 2' in done.stdout
    last = load_checkpoint_file(work / 'latest.pth')
    assert last['meta']['iter'] == 6  # 2 epochs of 6 samples on two ranks


def test_slurm_says_that_the_port_is_taken(files, cluster, taken):
    done = execute(
        [ROOT / 'tools' / 'slurm_train.sh', 'debug', 'tiny', files[0]],
        PATH=cluster,
        GPUS='1',
        PORT=str(taken),
    )
    assert done.returncode == 2
    (line,) = [s for s in done.stderr.splitlines() if s.startswith('error')]
    assert f'port {taken} is in use' in line


# -- the port --------------------------------------------------------------


def test_a_taken_port_is_one_sentence_with_the_next_free_one(taken):
    assert not port_is_free(taken)
    with pytest.raises(ValueError, match=f'port {taken} is in use') as error:
        check_port(taken)
    (free,) = [
        int(word)
        for word in str(error.value).replace(',', ' ').split()
        if word.isdigit() and int(word) != taken
    ]
    assert free > taken
    assert port_is_free(free)


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh'])
def test_the_scripts_check_the_port_first(files, taken, script):
    words = [files[0]] + [files[1]] * (script == 'dist_test.sh') + ['2']
    path = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'
    script = ROOT / 'tools' / script
    done = execute([script, *words], PORT=str(taken), PATH=path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f'error: port {taken} is in use on this machine' in line


def test_dist_train_and_dist_test_run_on_two_ranks(files, tmp_path):
    path = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'
    env = dict(PORT=str(unused_port()), PATH=path)
    work = tmp_path / 'work'
    train = [ROOT / 'tools' / 'dist_train.sh', files[0], '2']
    done = execute([*train, '--work-dir', work], **env)
    assert done.returncode == 0, done.stderr[-3000:]
    test = [ROOT / 'tools' / 'dist_test.sh', files[0], work / 'latest.pth']
    flags = ['2', '--work-dir', work / 'test', '--tmpdir', tmp_path / 'tmp']
    done = execute([*test, *flags], **env)
    assert done.returncode == 0, done.stderr[-3000:]
    (log,) = (work / 'test').glob('*/*.json')
    # Every rank writes this file, also at once: after the shorter text may
    # stand the end of the longer.
    two = json.JSONDecoder().raw_decode(log.read_text())[0]['mean']
    main = runpy.run_path(str(ROOT / 'tools' / 'test.py'))['main']
    words = [files[0], work / 'latest.pth', '--work-dir', work / 'one']
    # The logits cancel out in their mean, so its own size says nothing about
    # the rounding of the sums behind it.
    assert main(list(map(str, words)))['mean'] == pytest.approx(two, abs=1e-6)


_START = """
import atexit
import torch.distributed as dist
atexit.register(lambda: print('left:', not dist.is_initialized()))
from mmprune.run import launch
launch.start('pytorch', None, print)
"""


def test_a_process_leaves_its_group_before_it_ends():
    words = [sys.executable, '-c', _START]
    rank = dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1')
    port = str(unused_port())
    done = execute(words, **rank, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    assert 'left: True' in done.stdout, done.stderr[-3000:]


# -- without processes -----------------------------------------------------


def test_launcher_none_under_torchrun_becomes_pytorch(monkeypatch):
    lines = []
    monkeypatch.setenv('WORLD_SIZE', '3')
    assert launch.choose_launcher('none', 3, lines.append) == 'pytorch'
    assert '--launcher none becomes --launcher pytorch' in lines[0]


def test_several_devices_without_a_launcher_say_how_to_start(monkeypatch):
    lines = []
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    argv = ['tools/x.py', 'c d.py', '--gpus', '3', '--launcher', 'none']
    monkeypatch.setattr(sys, 'argv', argv)
    assert launch.choose_launcher('none', 3, lines.append) == 'none'
    assert '--nproc_per_node=3' in lines[0]
    assert lines[0].endswith("tools/x.py 'c d.py' --gpus 3 --launcher pytorch")
    assert launch.choose_launcher('none', 1, pytest.fail) == 'none'


def test_gpu_ids_are_the_visible_devices(monkeypatch):
    lines = []
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5')
    launch.set_visible_devices([2, 0], 'pytorch', lines.append)
    assert os.environ['CUDA_VISIBLE_DEVICES'] == '2,0'
    assert 'is 2,0, was 5' in lines[0]
    launch.set_visible_devices(None, 'pytorch', pytest.fail)
    assert os.environ['CUDA_VISIBLE_DEVICES'] == '2,0'
    launch.set_visible_devices([2, 0], 'none', lines.append)
    assert os.environ['CUDA_VISIBLE_DEVICES'] == '2'


def test_fewer_devices_than_processes_are_refused(monkeypatch):
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '3')
    with pytest.raises(ValueError, match='give as many ids as processes'):
        launch.set_visible_devices([0, 1], 'pytorch', print, gpus=2)


@pytest.mark.parametrize(
    ('there', 'ids', 'gpus', 'absent'),
    [
        (2, [99], 1, '99'),
        (2, [0, 2], 1, '2'),
        (2, [-1], 1, '-1'),
        (0, [99], 1, '99'),
        (0, [0, 1, 2], 2, '2'),
    ],
)
def test_devices_that_are_not_there_are_refused(
    monkeypatch, there, ids, gpus, absent
):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: there)
    with pytest.raises(
        ValueError, match=rf'--gpu-ids {absent}: PyTorch sees {there} GPUs'
    ):
        launch.set_visible_devices(ids, 'none', print, gpus)


def test_without_a_gpu_the_numbers_are_those_of_processes(monkeypatch):
    lines = []
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    launch.set_visible_devices([0, 1], 'pytorch', lines.append, gpus=2)
    assert '--gpu-ids has no effect, this runs on the CPU' in lines[0]


def test_the_devices_are_counted_whatever_is_visible(monkeypatch):
    seen = []
    monkeypatch.setattr(
        torch.cuda,
        'device_count',
        lambda: seen.append(os.environ.get('CUDA_VISIBLE_DEVICES')) or 8,
    )
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3')
    launch.set_visible_devices([7], 'none', print)
    assert seen == [None]
    assert os.environ['CUDA_VISIBLE_DEVICES'] == '7'


@pytest.mark.parametrize(
    ('launcher', 'start'),
    [('pytorch', 'torchrun'), ('slurm', 'srun'), ('mpi', 'mpirun')],
)
def test_a_launcher_that_did_not_launch(monkeypatch, launcher, start):
    for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=start):
        launch.start(launcher, {}, print)
