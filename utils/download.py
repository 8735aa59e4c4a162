"""Downloading one large file: resumed where it stopped, and checked before it takes its name."""
import errno
import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from utils.errors import InputError
from utils.locks import check_writable, exclusive

CHUNK = 1 << 20  # bytes
TIMEOUT = 30  # seconds without an answer
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def download(url: str, target: Path, size: int | None = None, sha256: str | None = None) -> None:
    """Fetches `url` to `target`. Until it is complete and checked the file is called `<target>.part`.

    Args:
        size: of the file in bytes, None: what the server says
        sha256: hexadecimal, None: not checked
    Raises:
        InputError: the network refuses or breaks off (the part is kept for the next try), or the file isn't the one
            that was expected (the part is removed).
    """
    part = target.with_name(target.name + ".part")
    check_writable(target.parent)
    with exclusive(target):
        if not target.is_file():  # else another run has fetched it meanwhile
            _download(url, part, target, size, sha256)


def _download(url: str, part: Path, target: Path, size: int | None, sha256: str | None) -> None:
    try:
        announced = _fetch(url, part)
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: not an address
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise InputError(f"{url}: could not be downloaded ({error}); the same command resumes where it stopped, "
                         f"or download it by hand to {target}") from error
    expected = size if size is not None else announced
    if expected is not None and part.stat().st_size < expected:
        raise InputError(f"{url}: the connection ended after {part.stat().st_size} of {expected} bytes; "
                         f"the same command resumes, or download it by hand to {target}")
    _check(url, part, expected, sha256)
    part.replace(target)


def _fetch(url: str, part: Path) -> int | None:
    """Appends what is missing to `part`; returns the whole file's size, if the server says it."""
    begun = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and begun:  # nothing is left to fetch
            return None
        raise
    with answer:
        resumed = answer.status == 206
        done = begun if resumed else 0  # a server without ranges sends everything again
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file, \
                tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=part.stem) as progress:
            while chunk := answer.read(CHUNK):
                progress.update(file.write(chunk))
        return total


def _check(url: str, part: Path, size: int | None, sha256: str | None) -> None:
    received = part.stat().st_size
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if sha256 else None
    if (size is not None and received != size) or digest != sha256:
        part.unlink()
        raise InputError(f"{url}: sent a file of {received} bytes with sha256 {digest}, not the expected one "
                         f"({size} bytes, sha256 {sha256}); it was removed, try again or use another source")
