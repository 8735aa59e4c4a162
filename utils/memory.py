"""How much memory there is, and how the C library keeps what large tensors leave behind."""
import ctypes
import re
import sys
from pathlib import Path

from utils.threads import control_groups

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # names of mallopt's parameters in glibc
LARGEST = 32 * 2 ** 20  # bytes that glibc would come to keep by itself
SYSTEM, PROCESS = Path("/proc/meminfo"), Path("/proc/self/status")


def keep_freed_memory(keep: bool = True) -> None:
    """Makes freed memory stay with the process, so that the next tensor needs none from the system.

    On a CPU every layer makes and frees tensors of tens of megabytes. glibc hands each of them back, and gets the next
    one page by page, which can take as long as the computation. Elsewhere than with glibc this does nothing.

    Args:
        keep: False for what a process comes to without this call
    """
    if not sys.platform.startswith("linux") or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    libc.mallopt(MMAP_THRESHOLD, LARGEST)
    libc.mallopt(MMAP_MAX, 0 if keep else 65536)
    libc.mallopt(TRIM_THRESHOLD, -1 if keep else 2 * LARGEST)


def most_that_fit(size: int) -> int:
    """How many computations of so many bytes each the free memory holds, at least 1; any number where it isn't known.

    Free is what the system can give or, where that is less, what the limit of a control group leaves this process.
    """
    if not SYSTEM.exists():
        return sys.maxsize
    held = _kilobytes(PROCESS, "VmRSS")
    limits = [limit // 1024 - held for group in control_groups("memory") if (limit := _limit(group))]
    return max(1, min([_kilobytes(SYSTEM, "MemAvailable"), *limits]) * 1024 // size)


def _limit(group: Path) -> int | None:
    """Bytes that a control group may hold (version 2 or 1); None where it says nothing."""
    for file in (group / "memory.max", group / "memory.limit_in_bytes"):
        if file.exists() and (limit := file.read_text().strip()).isdecimal():
            return int(limit)
    return None


def _kilobytes(file: Path, name: str) -> int:
    return int(re.search(rf"^{name}:\s+(\d+) kB$", file.read_text(), re.MULTILINE)[1])
