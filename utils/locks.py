"""One run at a time on one output, and what a killed run left behind.

    with exclusive(path):         # before anything is looked at, so that a second run sees what the first one made
        ...
"""
import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import say_once

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system, as some network drives
NO_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS)
YOUNG = 1  # seconds in which a file may be there and not yet held


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Waits until no other run works on `path`, and keeps others waiting; says that it waits.

    Where nothing can be written nothing is locked either: who only reads needs no lock, and who writes is told by what
    writes. A file system that has no locks is told of once.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path)
    except OSError as error:
        if error.errno not in (*NO_LOCKS, *NO_WRITING):
            raise
        if error.errno in NO_LOCKS:
            say_once(f"{path.parent}: this file system has no locks ({error.strerror}); don't start two runs there")
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()  # held still: who waits for it finds out that it is gone, and makes another
        lock.release()


def _acquire(path: Path) -> FileLock:
    lock = FileLock(path.with_name(f".{path.name}.lock"), fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{path}: another run is working on it; waiting until it has ended", file=sys.stderr, flush=True)
        lock.acquire()
    except NotImplementedError as error:
        raise OSError(errno.ENOSYS, str(error)) from None
    return lock


def hold(path: Path) -> int | None:
    """Marks a file or folder as one that a living process works on, until the number that it returns is closed.

    None where somebody else holds it, or the file system can't say.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove_if_abandoned(path: Path) -> None:
    """Removes a file or folder that no living process holds (`hold`)."""
    try:
        if (descriptor := hold(path)) is None:
            return
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.close(descriptor)
    except OSError:  # gone meanwhile, or not ours to touch
        return


@cache  # once in a process
def remove_leftovers(folder: Path) -> None:
    """Removes what killed runs were writing in a folder."""
    for path in folder.glob(".*.part*"):
        with suppress(OSError):  # gone meanwhile
            if time.time() - path.stat().st_mtime > YOUNG:
                remove_if_abandoned(path)


def check_writable(folder: Path) -> None:
    """Makes the folder and tries to write there, before the hours of work whose result it is for. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{os.getpid()}.part"
    try:
        probe.write_bytes(bytes(4096))
    finally:
        probe.unlink(missing_ok=True)
