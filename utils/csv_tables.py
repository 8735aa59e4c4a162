"""CSV tables: lists of stems and metadata of images are read, results are written."""
import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from utils.errors import InputError
from utils.files import atomic_path


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads a CSV file with a header, UTF-8 with or without byte order mark, one dictionary per row.

    Raises:
        InputError: the file is missing, isn't such a file, or lacks one of `columns`.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such table; see data/README.md for where to get it and where it goes")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, found = list(reader), reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file in UTF-8 ({error}); get it again") from None
    if absent := [column for column in columns if column not in found]:
        raise InputError(f"{path}: has no column {absent[0]!r} (its columns: {', '.join(found)}); get it again")
    return rows


def read_column(path: Path, column: str) -> list[str]:
    """The values of one column, in order. Raises InputError as `read_rows` does."""
    return [row[column] or "" for row in read_rows(path, [column])]


def matching_stems(path: Path, stem_column: str, rule: Mapping[str, str]) -> frozenset[str]:
    """Stems of the rows whose columns have all the values of `rule`. Raises InputError as `read_rows` does."""
    rows = read_rows(path, [stem_column, *rule])
    return frozenset(row[stem_column] for row in rows if all(row[column] == value for column, value in rule.items()))


def write_rows(path: Path, rows: Iterable[Sequence]) -> None:
    """Writes a CSV file in UTF-8, complete or not at all; the first row is its header."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
