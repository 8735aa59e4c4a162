"""SHA-256 of files, computed once while a file stays as it is: 10,086 images are looked at in a second.

A file stands for its digest while its size, its times and its inode are the same; one that has just been written is
always read.
"""
import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from utils.locks import exclusive
from utils.overlap import map_threaded
from utils.provenance import describe_run
from utils.records import find_record, write_record

READERS = 4  # threads
SETTLED = 2 * 10 ** 9  # nanoseconds: within the resolution of its times a file might change twice

Index = dict[str, tuple[str, str]]  # path -> state, digest
_known: Index = {}


def digest_file(path: Path) -> str:
    """Of one file, hexadecimal. Raises OSError."""
    file = path.stat()
    name, state = str(path.resolve()), f"{file.st_size} {file.st_mtime_ns} {file.st_ctime_ns} {file.st_ino}"
    known_state, digest = _known.get(name, ("", ""))
    if state == known_state:
        return digest
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if time.time_ns() - max(file.st_mtime_ns, file.st_ctime_ns) > SETTLED:
        _known[name] = state, digest
    return digest


def digest_files(paths: Sequence[Path], index: Path) -> list[str]:
    """Of many files, which `index` keeps for later runs where it can be written. Raises OSError."""
    kept = find_record(index, Index) or {}
    _known.update({**kept, **_known})
    digests = list(map_threaded(digest_file, paths, READERS))
    names = [str(path.resolve()) for path in paths]
    if new := {name: _known[name] for name in names if name in _known and kept.get(name) != _known[name]}:
        with suppress(OSError), exclusive(index):
            write_record(index, {**(find_record(index, Index) or {}), **new})
    return digests


class _Prepared(msgspec.Struct):
    images: dict[str, tuple[str, str]]


class Origins:
    """What prepared images were made of; a context manager that keeps it in a file beside them.

    An image that somebody else put there, or changed since, counts as made of nothing.
    """

    def __init__(self, path: Path):
        """`path`: of the file that keeps it."""
        self._path = path
        known = find_record(path, _Prepared)
        self._known = known.images if known else {}  # name -> origin, digest

    def outdated(self, origins: Mapping[Path, str]) -> list[Path]:
        """Those of the images that aren't there as they were made of these origins."""
        there = [path for path in origins if path.is_file()]
        digests = dict(zip(there, digest_files(there, self._path.with_name("digests.json")), strict=True))
        return [path for path, origin in origins.items()
                if path not in digests or self._known.get(path.name) != (origin, digests[path])]

    def note(self, path: Path, origin: str) -> None:
        """That an image has been written."""
        self._known[path.name] = origin, digest_file(path)

    def __enter__(self) -> "Origins":
        return self

    def __exit__(self, *_: object) -> None:
        write_record(self._path, {"images": self._known, "run": describe_run()})
