"""How much memory this process takes, and took at most."""

import ctypes
import os
import re
import resource
import sys
from pathlib import Path

_CLEAR = Path('/proc/self/clear_refs')
# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed() -> None:
    """Lets the C library keep what tensors give back, up to 2 GB.

    It would return the memory of every large tensor at once, and the system
    fills the next one with zeros page by page: a third of the time of a frame
    of VAD-tiny on a CPU. Does nothing where it is not glibc that allocates,
    or where the environment says how.
    """
    if any(n.startswith(('MALLOC_', 'GLIBC_TUNABLES')) for n in os.environ):
        return
    try:
        option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # Older versions take 32 MB at most.
    option(_MMAP_THRESHOLD, 1 << 28) or option(_MMAP_THRESHOLD, 1 << 25)
    option(_TRIM_THRESHOLD, (1 << 31) - 1)


def reset_peak() -> None:
    """Forgets the peak so far, where the system can (Linux)."""
    try:
        _CLEAR.write_text('5')
    except OSError:
        return


def peak_bytes() -> int:
    """Returns the most memory since :func:`reset_peak`, or since the start."""
    found = _status('VmHWM')
    if found is not None:
        return found
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def current_bytes() -> int:
    """Returns the memory in use now; the peak where that is not known."""
    found = _status('VmRSS')
    return peak_bytes() if found is None else found


def _status(name: str) -> int | None:
    try:
        text = Path('/proc/self/status').read_text()
    except OSError:
        return None
    match = re.search(rf'{name}:\s+(\d+) kB', text)
    return int(match[1]) * 1024 if match else None
