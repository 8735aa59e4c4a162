"""Small JSON files of ours, which know whether they are as they were written.

    class Upload(Record):
        server: str

    write_record(path, Upload("..."))
    upload = read_record(path, Upload)
"""
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from utils.errors import InputError
from utils.files import write_bytes

CHECKSUM = "checksum"
Content = TypeVar("Content", bound="Record")


class Record(msgspec.Struct, frozen=True):
    """What a file holds; its keys are the fields."""


def write_record(path: Path, record: Record) -> None:
    """Writes a record with its checksum, complete or not at all."""
    content = msgspec.to_builtins(record)
    text = json.dumps({**content, CHECKSUM: _checksum(content)}, indent=1)
    write_bytes(path, text.encode())


def read_record(path: Path, kind: type[Content]) -> Content:
    """Reads one record; one of an older version may have no checksum.

    Raises:
        InputError: it is missing or damaged, or can't be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        stated = content.pop(CHECKSUM, None)
        if stated not in (None, _checksum(content)):
            raise ValueError("its checksum is another")
        return msgspec.convert(content, kind)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    except (ValueError, AttributeError, TypeError, RecursionError) as error:  # of whatever bytes
        raise InputError(f"{path}: a damaged record ({error})") from None


def read_intact(paths: Iterable[Path], kind: type[Content]) -> Iterator[tuple[Path, Content]]:
    """Yields the records that can be read; of the others says once that they are left out."""
    for path in paths:
        try:
            yield path, read_record(path, kind)
        except InputError as error:
            _say_once(f"left out: {error}; restore the file, or remove its folder")


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
