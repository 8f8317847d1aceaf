"""Where the processes of a run meet, before they have; needs no PyTorch."""

import errno
import os
import socket
import sys

DEFAULT_PORT = 29500
# Where each launcher tells a process its rank, the number of processes and
# the rank on its machine.
RANKS = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    mpi=(
        'OMPI_COMM_WORLD_RANK',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_LOCAL_RANK',
    ),
)


def is_first() -> bool:
    """Returns whether this is rank 0, as far as the environment tells.

    It is known before the processes have met.
    """
    ranks = [os.environ.get(names[0]) for names in RANKS.values()]
    known = [rank for rank in ranks if rank is not None]
    return not known or known[0] == '0'


def port_is_free(port: int) -> bool:
    """Returns whether a server could listen on a port of this machine."""
    family = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
    try:
        _listen(family, port)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            return error.errno != errno.EADDRINUSE
        return _is_free_ipv4(port)
    return True


def _is_free_ipv4(port: int) -> bool:
    try:
        _listen(socket.AF_INET, port)
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True


def _listen(family: socket.AddressFamily, port: int) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # One socket for both families, as PyTorch's store does.
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(('', port))
        server.listen(1)


def free_port(first: int) -> int:
    """Returns the first free port from ``first`` on."""
    for port in range(first, 65536):
        if port_is_free(port):
            return port
    raise ValueError(f'no port from {first} on is free on this machine')


def check_port(port: int) -> None:
    """Refuses a port that is taken.

    Raises:
        ValueError: If so; names the next free one.
    """
    if not 0 < port < 65536:
        raise ValueError(f'a port lies between 1 and 65535, found {port}')
    if not port_is_free(port):
        raise ValueError(
            f'port {port} is in use on this machine; the next free one is '
            f'{free_port(port + 1)}, set it by PORT or MASTER_PORT'
        )


if __name__ == '__main__':
    try:
        check_port(int(sys.argv[1]))
    except (ValueError, IndexError) as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
