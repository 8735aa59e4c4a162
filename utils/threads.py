"""Threads on a machine that is shared: as many as there are cores to run them, and none that spins.

An operation of several threads ends with its slowest one. OpenMP's threads spin while they wait for it, so they keep
the core that it needs: beside one other busy process, or in a container whose quota is below its cores, an operation
can take a hundred times as long. Threads that sleep leave the core to whoever computes.
"""
import math
import os
import threading
from collections.abc import MutableMapping
from pathlib import Path, PurePosixPath

CONTROL_GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def share_machine(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets how OpenMP's threads wait and, below a quota, how many there are; what the user has set stays.

    To be called before PyTorch is imported, because OpenMP reads the environment when it is loaded. The packages of
    commands do so, as they are imported before any of their commands.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if quota() < affinity():  # the affinity alone is respected by PyTorch itself
        environment.setdefault("OMP_NUM_THREADS", str(available_cores()))


def available_cores() -> int:
    """Cores that this process can keep busy: those of its affinity, or its quota, rounded up, where that is less."""
    return math.ceil(min(quota(), affinity()))


def affinity() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota() -> float:
    """Cores' worth of time that the control groups of this process allow (version 1 or 2), infinite without a limit."""
    return min((_limit(group) for group in control_groups("cpu")), default=math.inf)


def control_groups(controller: str) -> list[Path]:
    """Folders of this process's groups that may limit it by `controller`, and of those around them, which do so, too.

    Where a container shows its own groups alone, the path in `MEMBERSHIP` leads nowhere and the limit stands at the
    top.
    """
    folders = []
    for membership in MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.exists() else []:
        _, controllers, path = membership.split(":", 2)
        if controller in controllers.split(",") or not controllers:  # version 2 names none
            top, group = CONTROL_GROUPS / (controller if controllers else ""), PurePosixPath(path).relative_to("/")
            folders += [top / folder for folder in (group, *group.parents)]
    return folders


def _limit(group: Path) -> float:
    """Of one control group's folder; infinite where it says nothing."""
    try:
        if (file := group / "cpu.max").exists():
            time, period = file.read_text().split()
        else:
            time, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(time) / int(period) if int(time) > 0 else math.inf
    except (OSError, ValueError):  # not there, or "max"
        return math.inf


def use_one_thread(elsewhere: int) -> None:
    """PyTorch's operations use one thread when they are called by this thread, and `elsewhere` when by a new one."""
    import torch  # takes seconds, and is there already in a process that computes
    torch.get_num_threads()  # a thread's first call takes over the process's number
    torch.set_num_threads(1)  # which this sets, too
    restore = threading.Thread(target=torch.set_num_threads, args=(elsewhere,))
    restore.start()
    restore.join()
