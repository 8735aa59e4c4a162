"""How the C library keeps memory that large tensors leave behind."""
import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # names of mallopt's parameters in glibc
LARGEST = 32 * 2 ** 20  # bytes that glibc would come to keep by itself


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
