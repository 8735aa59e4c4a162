"""Small JSON files of ours, which know whether they are as they were written.

    class SessionEnd(msgspec.Struct):
        status: str

    write_record(path, SessionEnd("completed"))
    end = read_record(path, SessionEnd)
"""
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from utils.errors import InputError, say_once
from utils.files import write_bytes

CHECKSUM = "checksum"
Content = TypeVar("Content")


def write_record(path: Path, content: Any) -> None:
    """Writes a dict or a msgspec.Struct with a checksum, complete or not at all."""
    plain = msgspec.to_builtins(content)
    write_bytes(path, json.dumps({**plain, CHECKSUM: _checksum(plain)}, indent=1).encode())


def read_record(path: Path, kind: type[Content]) -> Content:
    """Reads one record; one of an older version may have no checksum.

    Raises:
        InputError: it is missing or damaged, or can't be read; the message leaves the remedy to the caller.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stated = content.pop(CHECKSUM, None)
        if stated not in (None, _checksum(content)):
            raise ValueError("its checksum is another")
        return msgspec.convert(content, kind)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    except (ValueError, AttributeError, TypeError, RecursionError) as error:  # of whatever bytes
        raise InputError(f"{path}: a damaged record ({error})") from None


def find_record(path: Path, kind: type[Content]) -> Content | None:
    """As `read_record`, for what can be made anew: None if it is missing or damaged."""
    with suppress(InputError):
        return read_record(path, kind)
    return None


def read_intact(paths: Iterable[Path], kind: type[Content]) -> Iterator[tuple[Path, Content]]:
    """Yields the records that can be read; of the others says once that they are left out."""
    for path in paths:
        try:
            yield path, read_record(path, kind)
        except InputError as error:
            say_once(f"left out: {error}; restore the file, or move its folder away")


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
