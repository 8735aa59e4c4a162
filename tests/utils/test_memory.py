"""Freed memory stays with the process only where that was asked for."""
import subprocess
import sys
from pathlib import Path

import pytest

from utils import memory, threads
from utils.memory import most_that_fit

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


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is one of glibc")
@pytest.mark.parametrize(("keep", "least", "most"), [(True, 0, 0.1), (False, 0.5, 2)])
def test_large_tensors_take_new_pages_only_without_it(keep, least, most):
    """The share of five tensors' memory that came from the system page by page."""
    share = subprocess.run([sys.executable, "-c", PROGRAM.format(keep=keep)], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout
    assert least <= float(share) <= most


@pytest.mark.parametrize(("files", "size", "expected"), [
    ({}, 100, 10),
    ({}, 300, 3),
    ({}, 5000, 1),
    ({"memory.max": "900\n"}, 100, 4),  # 500 of which the process holds already
    ({"a/memory.max": "max\n"}, 100, 10),
    ({"memory/b/memory.limit_in_bytes": "700\n"}, 100, 2),
    ({"memory/b/memory.limit_in_bytes": "9223372036854771712\n"}, 100, 10),
])
def test_as_much_is_computed_at_once_as_fits(monkeypatch, tmp_path, files, size, expected):
    """Sizes in kilobytes."""
    monkeypatch.setattr(threads, "CONTROL_GROUPS", tmp_path)
    for name, (module, attribute), text in [
            ("membership", (threads, "MEMBERSHIP"), "3:memory:/b\n0::/a\n"),
            ("meminfo", (memory, "SYSTEM"), "MemTotal:    2000 kB\nMemAvailable:    1000 kB\n"),
            ("status", (memory, "PROCESS"), "VmHWM:   800 kB\nVmRSS:\t   500 kB\n")]:
        monkeypatch.setattr(module, attribute, tmp_path / name)
        (tmp_path / name).write_text(text)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text if "max" in text else f"{1024 * int(text)}\n")
    assert most_that_fit(1024 * size) == expected


def test_where_the_memory_is_not_known_it_limits_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "SYSTEM", tmp_path / "absent")
    assert most_that_fit(1) == sys.maxsize
