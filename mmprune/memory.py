"""How much memory this process takes, and took at most."""

import re
import resource
import sys
from pathlib import Path

_CLEAR = Path('/proc/self/clear_refs')


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
