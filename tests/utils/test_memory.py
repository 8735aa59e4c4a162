"""Freed memory stays with the process only where that was asked for."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource, torch
from utils.memory import keep_freed_memory
keep_freed_memory({keep})
for _ in range(12):
    torch.ones(32 * 2 ** 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(32 * 2 ** 20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (5 * 128 * 2 ** 20))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is one of glibc")
@pytest.mark.parametrize(("keep", "least", "most"), [(True, 0, 0.1), (False, 0.5, 2)])
def test_large_tensors_take_new_pages_only_without_it(keep, least, most):
    """The share of five tensors' memory that came from the system page by page."""
    share = subprocess.run([sys.executable, "-c", PROGRAM.format(keep=keep)], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout
    assert least <= float(share) <= most
