"""Memory of the process."""

import os
import platform
import subprocess
import sys

import pytest
from conftest import ROOT

FAULTS = """
import resource
import numpy as np
from mmprune.memory import keep_freed
keep_freed()
for i in range(11):
    np.ones(1 << 23)
    if i == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**env):
    """Returns how many pages the system fills for ten arrays of 64 MB."""
    clean = {k: v for k, v in os.environ.items() if 'MALLOC' not in k}
    done = subprocess.run(
        [sys.executable, '-c', FAULTS],
        env={**clean, 'PYTHONPATH': str(ROOT), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != 'glibc', reason='another C library allocates'
)
def test_memory_that_was_freed_is_used_again():
    huge = 16 << 10  # pages of 4 kB in 64 MB; some systems take larger ones
    kept = page_faults()
    # Who says how memory is kept is not overruled.
    returned = page_faults(MALLOC_MMAP_THRESHOLD_='131072')
    assert kept < returned / 4
    assert kept < huge
