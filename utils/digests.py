"""SHA-256 of files, computed once while a file stays as it is."""
import hashlib
from functools import cache
from pathlib import Path


def digest_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, hexadecimal; read once in a process while its size and times stay the same."""
    stat = path.stat()
    return _digest(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _digest(path: Path, size: int, mtime_ns: int, ctime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
