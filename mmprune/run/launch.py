"""Starting on one or several devices: launchers, ports, ranks."""

import atexit
import datetime
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import init_dist

from .port import DEFAULT_PORT, RANKS, check_port, free_port, is_first

_STARTERS = dict(
    pytorch='torchrun (tools/dist_train.sh)',
    slurm='srun (tools/slurm_train.sh)',
    mpi='mpirun',
)

# Pruning and evaluation of rank 0 may take hours while the others wait; a
# collective of the training itself keeps the short limit of PyTorch.
_WAIT = datetime.timedelta(days=2)


@dataclass(frozen=True)
class Team:
    """The processes of a run.

    Args:
        rank: Number of this process.
        world_size: How many there are.
        waiting: Group in which the others wait for rank 0.
    """

    rank: int = 0
    world_size: int = 1
    waiting: Any = None

    def share(self, value: Any = None) -> Any:
        """Returns the value of rank 0, on every rank."""
        if self.waiting is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.waiting)
        return box[0]

    def first(self, work: Callable[[], Any]) -> Any:
        """Runs ``work`` on rank 0 while the others wait; returns its value.

        Raises:
            Exception: What ``work`` raised, on rank 0.
            SystemExit: On the others, if it raised: one message is enough.
        """
        if self.rank:
            failed, value = self.share()
            if failed:
                sys.exit(2)
            return value
        try:
            value = work()
        except BaseException:
            self.share((True, None))
            raise
        return self.share((False, value))[1]

    def same(self, digest: str, what: str) -> None:
        """Proves that all ranks hold the same.

        Args:
            digest: Hash of what this rank holds.
            what: How the error calls it.

        Raises:
            ValueError: On every rank, naming those that differ from rank 0.
        """
        if self.waiting is None:
            return
        found: list[str] = [''] * self.world_size
        dist.all_gather_object(found, digest, group=self.waiting)
        differ = [i for i, other in enumerate(found) if other != found[0]]
        if differ:
            raise ValueError(
                f'the ranks {differ} hold another {what} than rank 0; give '
                'all machines the same --output-dir on a shared disk'
            )


def set_local_rank(local_rank: int) -> None:
    """Keeps ``--local-rank`` where PyTorch looks, unless a launcher did."""
    os.environ.setdefault('LOCAL_RANK', str(local_rank))


def choose_launcher(launcher: str, gpus: int, log: Callable) -> str:
    """Returns the launcher that fits how this process was started.

    Args:
        launcher: What was asked for.
        gpus: How many devices were asked for.
        log: Called with a line when something else is done than asked.
    """
    world_size = int(os.environ.get('WORLD_SIZE', 1))
    if launcher == 'none' and world_size > 1:
        log(
            f'{world_size} processes were started (WORLD_SIZE): --launcher '
            'none becomes --launcher pytorch'
        )
        return 'pytorch'
    if launcher == 'none' and gpus > 1:
        log(
            f'--gpus {gpus} with --launcher none runs on one device; for '
            f'{gpus} start: {distributed_command(gpus)}'
        )
    return launcher


def distributed_command(gpus: int, argv: list[str] | None = None) -> str:
    """Returns the command line that runs this command on several devices."""
    words = list(sys.argv if argv is None else argv)
    while '--launcher' in words:
        at = words.index('--launcher')
        del words[at : at + 2]
    words = [w for w in words if not w.startswith('--launcher=')]
    return (
        f'python -m torch.distributed.run --nproc_per_node={gpus} '
        f'--master_port={free_port(DEFAULT_PORT)} {shlex.join(words)} '
        '--launcher pytorch'
    )


def set_visible_devices(
    ids: Sequence[int], launcher: str, log: Callable, gpus: int = 1
) -> None:
    """Shows CUDA only the asked devices; to be called before it starts.

    Without CUDA the numbers are those of the processes on the CPU.

    Args:
        ids: Numbers of devices, none for all.
        launcher: Without one only the first device is used.
        log: Called with a line when something else is done than asked.
        gpus: How many devices were asked for.

    Raises:
        ValueError: If an id is given twice or is not there, or there are
            fewer than processes on this machine.
    """
    if not ids:
        return
    count = _gpus_here()
    absent = [i for i in ids if not 0 <= i < (count or gpus)]
    if absent:
        raise ValueError(
            f'--gpu-ids {" ".join(map(str, absent))}: PyTorch sees {count} '
            'GPUs here, counted from 0; leave the flag out to take them all, '
            'or the CPU where there is none'
        )
    if len(set(ids)) < len(ids):
        raise ValueError(
            f'--gpu-ids takes different numbers of devices, found {list(ids)}'
        )
    if not count:
        log('no CUDA device: --gpu-ids has no effect, this runs on the CPU')
    local = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    if launcher == 'pytorch' and local > len(ids):
        raise ValueError(
            f'{local} processes were started on this machine, but --gpu-ids '
            f'names {len(ids)} ({list(ids)}); give as many ids as processes'
        )
    visible = ','.join(map(str, ids if launcher != 'none' else ids[:1]))
    before = os.environ.get('CUDA_VISIBLE_DEVICES')
    if before not in (None, visible):
        log(f'--gpu-ids: CUDA_VISIBLE_DEVICES is {visible}, was {before}')
    os.environ['CUDA_VISIBLE_DEVICES'] = visible


def _gpus_here() -> int:
    """Returns how many GPUs the machine has, whatever is visible."""
    before = os.environ.pop('CUDA_VISIBLE_DEVICES', None)
    try:
        return torch.cuda.device_count()
    finally:
        if before is not None:
            os.environ['CUDA_VISIBLE_DEVICES'] = before


def check_device(device: str) -> None:
    """Refuses a device that is not here, before anything is loaded.

    Raises:
        ValueError: If so.
    """
    kind, _, number = device.partition(':')
    count = torch.cuda.device_count() if kind == 'cuda' else 1
    if kind not in ('cpu', 'cuda') or not (number or '0').isdecimal():
        raise ValueError(
            f'--device is cpu, cuda or cuda:N with the number of a GPU, found '
            f'{device!r}'
        )
    if kind == 'cuda' and not torch.cuda.is_available():
        raise ValueError(
            f'--device {device} was asked for, but PyTorch '
            f'{torch.__version__} sees no CUDA device; use --device cpu'
        )
    if int(number or 0) >= count:
        raise ValueError(
            f'--device {device} was asked for, and the last one is '
            f'{kind}:{count - 1}'
        )


def start(launcher: str, dist_cfg: dict | None, log: Callable) -> Team:
    """Joins the processes of a run; alone where the launcher is ``none``.

    Args:
        launcher: As ``--launcher`` takes it.
        dist_cfg: ``env_cfg.dist_cfg`` of the config.
        log: Called with what was started; says it on rank 0 only.

    Raises:
        ValueError: If the launcher's environment is absent or the master
            port is taken.
    """
    if launcher == 'none':
        return Team()
    if not dist.is_initialized():
        _read_environment(launcher)
        # torchrun listens there itself, before it starts the processes.
        listening = os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
        if is_first() and not listening:
            check_port(int(os.environ['MASTER_PORT']))
        _join(dict(dist_cfg or {}), log)
        atexit.register(_leave)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    waiting = dist.new_group(backend='gloo', timeout=_WAIT)
    device = int(os.environ['LOCAL_RANK'])
    devices = [None] * world_size
    name = device if torch.cuda.is_available() else 'cpu'
    dist.all_gather_object(devices, name, group=waiting)
    log(f'distributed run: world_size: {world_size}, devices {devices}')
    return Team(rank, world_size, waiting)


def _leave() -> None:
    # A process that ends while threads of gloo still run is aborted at times,
    # and the launcher then calls a run that was done a failed one.
    if dist.is_initialized():
        dist.destroy_process_group()


def _read_environment(launcher: str) -> None:
    """Sets what PyTorch reads from what the launcher set."""
    names = RANKS[launcher]
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ValueError(
            f'--launcher {launcher} was asked for, but {", ".join(missing)} '
            'is not in the environment; start through '
            f'{_STARTERS[launcher]}, or leave --launcher out'
        )
    for ours, theirs in zip(RANKS['pytorch'], names, strict=True):
        os.environ[ours] = os.environ[theirs]
    os.environ.setdefault('MASTER_PORT', str(DEFAULT_PORT))
    if 'MASTER_ADDR' in os.environ:
        return
    if launcher == 'slurm':
        os.environ['MASTER_ADDR'] = _first_host(os.environ['SLURM_NODELIST'])
    elif os.environ['WORLD_SIZE'] == os.environ.get(
        'OMPI_COMM_WORLD_LOCAL_SIZE', '1'
    ):
        os.environ['MASTER_ADDR'] = '127.0.0.1'
    else:
        raise ValueError(
            f'--launcher {launcher} needs MASTER_ADDR in the environment: '
            'the name of the machine of rank 0'
        )


def _first_host(nodes: str) -> str:
    """Returns the first machine of a Slurm list such as ``gpu[3-5]``."""
    try:
        hosts = subprocess.run(
            ['scontrol', 'show', 'hostname', nodes],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f'scontrol cannot tell the machines of {nodes!r} ({error}); set '
            'MASTER_ADDR to the name of the machine of rank 0'
        ) from error
    return hosts.stdout.split()[0]


def _join(dist_cfg: dict, log: Callable) -> None:
    backend = dist_cfg.pop('backend', 'nccl')
    if torch.cuda.is_available():
        init_dist('pytorch', backend=backend, **dist_cfg)
        return
    if backend != 'gloo':
        log(f'no CUDA device: backend gloo in place of {backend}')
    timeout = dist_cfg.get('timeout')
    limit = {}
    if timeout is not None:
        limit = dict(timeout=datetime.timedelta(seconds=timeout))
    dist.init_process_group('gloo', **limit)
