"""HDF5 files that are whole or aren't there, and are known to be as they were written.

    with new_hdf5(path, {"image": digest}) as file:
        file["embedding"] = features
    with open_hdf5(path) as file:
        ...

HDF5 itself crashes on a full disk, and may read a damaged file for ever. So files are made in memory, and the first
1024 bytes (HDF5's user block, which other programs skip) hold a line of JSON: number and `sha256` of the bytes that
follow, and what the file was made from. It is checked before HDF5 sees the file. A file of another program has no such
line, and is first read through by another process.
"""
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py

from utils.errors import InputError
from utils.files import atomic_path, explain_damage

HEADER = 1024  # bytes
PATIENCE = 60, 2 ** 23  # seconds for a file of another program, and bytes that another second is for
READ_THROUGH = """
import sys, h5py
def read(name, item):
    dict(item.attrs)
    if isinstance(item, h5py.Dataset):
        item[()]
with h5py.File(sys.argv[1], "r", locking=False) as file:
    dict(file.attrs)
    file.visititems(read)
"""


@contextmanager
def new_hdf5(path: Path, origin: Mapping[str, Any]) -> Iterator[h5py.File]:
    """Yields a file to be filled, which lies at `path` when the block succeeds.

    Args:
        origin: what it is made from, for `read_origin`: some 800 characters as JSON
    Raises:
        OSError: it can't be written.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w", userblock_size=HEADER) as file:
        yield file
    content = memory.getbuffer()[HEADER:]
    checks = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    header = json.dumps({**checks, **origin}).encode().ljust(HEADER)
    if len(header) > HEADER:
        raise ValueError(f"{path}: its origin takes {len(header)} bytes")
    with atomic_path(path) as temporary, temporary.open("wb") as target:
        target.write(header)
        target.write(content)


def read_origin(path: Path) -> dict[str, Any]:
    """What a file was made from, without HDF5; {} where it isn't there, isn't whole, or is of another program. Raises
    OSError."""
    try:
        with path.open("rb") as file:
            origin = _parse(file.read(HEADER))
            whole = origin.get("bytes") == os.fstat(file.fileno()).st_size - HEADER
    except FileNotFoundError:
        return {}
    return origin if whole else {}


def _parse(header: bytes) -> dict[str, Any]:
    try:
        origin = json.loads(header)
    except ValueError:
        return {}
    return origin if isinstance(origin, dict) and isinstance(origin.get("sha256"), str) else {}


@contextmanager
def open_hdf5(path: Path, remedy: str) -> Iterator[h5py.File]:
    """A file to be read. It isn't locked: a file at its place never changes.

    Args:
        remedy: of a damaged file
    Raises:
        InputError: it is damaged, or something is missing in it that the block asks for.
        OSError: it can't be accessed.
    """
    path.open("rb").close()  # HDF5 names the reason of a refusal in words only
    check_intact(path, remedy)
    with explain_damage(path, "damaged", remedy), h5py.File(path, "r", locking=False) as file:
        yield file


def check_intact(path: Path, remedy: str) -> None:
    """Reads the whole file, but once in a process while its size and time stay the same. Errors as of `open_hdf5`."""
    file = path.stat()
    if damage := _find_damage(path.resolve(), file.st_size, file.st_mtime_ns):
        raise InputError(f"{path}: damaged ({damage}); {remedy}")


@lru_cache
def _find_damage(path: Path, size: int, mtime_ns: int) -> str:
    """What is wrong with a file; "" if nothing is."""
    with path.open("rb") as file:
        header = file.read(HEADER)
        if stated := _parse(header).get("sha256"):
            return "" if hashlib.file_digest(file, "sha256").hexdigest() == stated else "its checksum is another"
    seconds, bytes_a_second = PATIENCE
    try:
        done = subprocess.run([sys.executable, "-c", READ_THROUGH, str(path)], capture_output=True, text=True,
                              errors="replace", check=False, timeout=seconds + size / bytes_a_second)
    except subprocess.TimeoutExpired:
        return "reading it finds no end"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"HDF5 fails with {done.returncode}"])[-1]

