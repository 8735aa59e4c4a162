"""How many cores a process may use, and that the threads of a command don't spin."""
import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.torch_threads import torch_threads
from utils import threads
from utils.overlap import map_side_by_side, map_threaded
from utils.threads import affinity, available_cores, quota, share_machine


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """Writes control groups as the kernel shows them: the process's membership, and files by their path."""
    monkeypatch.setattr(threads, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(threads, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(threads, "affinity", lambda: 8)

    def write(membership: str, **files: str) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return write


@pytest.mark.parametrize(("limits", "expected", "cores"), [
    ({"cpu.max": "150000 100000\n"}, 1.5, 2),
    ({"cpu.max": "20000 100000\n"}, 0.2, 1),
    ({"cpu.max": "max 100000\n"}, float("inf"), 8),
    ({"cpu.max": "1600000 100000\n"}, 16, 8),  # more than the affinity
    ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3, 3),  # the group around it is limited
    ({"a/b/cpu.max": "200000 50000\n", "a/cpu.max": "500000 100000\n"}, 4, 4),
    ({"other/cpu.max": "100000 100000\n"}, float("inf"), 8),
    ({"cpu.max": "nonsense\n"}, float("inf"), 8),
])
def test_quota_of_version_2(groups, limits, expected, cores):
    groups("0::/a/b\n", **limits)
    assert (quota(), available_cores()) == (expected, cores)


@pytest.mark.parametrize(("folder", "time", "expected"), [
    ("cpu/a", "250000", 2.5),
    ("cpu", "250000", 2.5),  # a container that sees itself at the top, but the machine's path
    ("cpu/a", "-1", float("inf")),
    ("memory/a", "250000", float("inf")),
])
def test_quota_of_version_1(groups, folder, time, expected):
    groups("5:memory:/a\n4:cpu,cpuacct:/a\n3:cpuset:/b\n0::/\n",
           **{f"{folder}/cpu.cfs_quota_us": f"{time}\n", f"{folder}/cpu.cfs_period_us": "100000\n"})
    assert quota() == expected


def test_without_control_groups_the_affinity_counts(groups):
    assert (quota(), available_cores()) == (float("inf"), 8)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system pins no process")
def test_a_pinned_process_has_fewer_cores():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert affinity() == available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("limit", "before", "expected"), [
    ("max 100000", {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ("250000 100000", {}, {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "3"}),
    ("250000 100000", {"OMP_NUM_THREADS": "6", "OMP_WAIT_POLICY": "ACTIVE"},
     {"OMP_NUM_THREADS": "6", "OMP_WAIT_POLICY": "ACTIVE"}),
])
def test_what_the_user_has_set_stays(groups, limit, before, expected):
    groups("0::/\n", **{"cpu.max": limit})
    share_machine(environment := dict(before))
    assert environment == expected


WATCH = """
import importlib, os, sys
class Watcher:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))
            os._exit(0)
sys.meta_path.insert(0, Watcher())
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize("module", ["scripts.evaluate", "unet_training.training",
                                    "benchmarks.shared_machine"])
def test_threads_of_a_command_are_set_before_torch_is_imported(module):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    command = [sys.executable, "-c", WATCH, module]
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed == "PASSIVE\n"


def count_threads_around_a_sum(_: int) -> tuple[int, int]:
    first = torch.get_num_threads()
    torch.ones(100_000).sum()
    return first, torch.get_num_threads()


def test_workers_have_one_thread_each_and_others_what_they_had():
    """Also a worker that has computed already, and a thread that begins later."""
    with torch_threads(3):
        assert set(map_side_by_side(count_threads_around_a_sum, range(6), 2)) == {(1, 1)}
        assert list(map_threaded(count_threads_around_a_sum, [0])) == [(3, 3)]
        assert torch.get_num_threads() == 3
