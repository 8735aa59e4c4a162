"""Tables: lists of stems and metadata of images are read, results are written as CSV, aligned text and LaTeX."""
import csv
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import InputError
from utils.files import atomic_path
from utils.names import plain, plain_stem, same_value

if TYPE_CHECKING:
    import pandas

SEPARATORS = ",;\t"
BEST = "*"  # ends a cell that stands out


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads a CSV file with a header, UTF-8 with or without byte order mark, one dictionary per row. Commas, semicolons
    or tabulators part its columns, whichever there are most of in the header.

    Raises:
        InputError: the file is missing, isn't such a file, or lacks one of `columns`.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such table; see data/README.md for where to get it and where it goes")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator = max(SEPARATORS, key=file.readline().count)
            file.seek(0)
            reader = csv.DictReader(file, delimiter=separator)
            rows, header = list(reader), reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file in UTF-8 ({error}); save it so, or get it again") from None
    if absent := [column for column in columns if column not in header]:
        raise InputError(f"{path}: has no column {absent[0]!r} (its columns: {', '.join(header)}); name the right one "
                         "in the description, or get the table again")
    return rows


def read_stems(path: Path, column: str) -> list[str]:
    """The stems that one column lists, in order, as `plain_stem` has them. Raises InputError as `read_rows` does."""
    return [stem for row in read_rows(path, [column]) if (stem := plain_stem(row[column]))]


def matching_stems(path: Path, stem_column: str, rule: Mapping[str, str], others: Mapping[str, str] | None = None,
                   stems: Collection[str] | None = None) -> frozenset[str]:
    """Stems of the rows whose columns have all the values of `rule`.

    Values are compared as `same_value` does.

    Args:
        others: where this is given, an empty cell in a column of `rule` is an error, unless that is its value; and so
            is a value that is neither that of `rule` nor the one that `others` has for the column
        stems: only the rows of these are looked at
    Raises:
        InputError: as `read_rows` does; a cell is wrong, or a stem has two rows that say different things.
    """
    found: dict[str, bool] = {}
    for number, row in enumerate(read_rows(path, [stem_column, *rule]), 2):
        stem = plain_stem(row[stem_column])
        if not stem or (stems is not None and stem not in stems):
            continue
        matches = True
        for column, value in rule.items():
            cell = plain(row[column])
            if others is not None and not cell and plain(value):
                raise InputError(f"{path}: row {number} ({stem}) has nothing in the column {column!r}; fill it in")
            same = same_value(cell, value)
            if others and column in others and not same and not same_value(cell, others[column]):
                raise InputError(f"{path}: row {number} ({stem}) has {cell!r} in the column {column!r}, which is "
                                 f"neither {value!r} nor {others[column]!r}; correct it")
            matches = matches and same
        if others is None:
            found[stem] = matches or found.get(stem, False)
        elif found.setdefault(stem, matches) != matches:
            raise InputError(f"{path}: row {number} ({stem}) contradicts another row of this image; keep one")
    return frozenset(stem for stem, matches in found.items() if matches)


def write_rows(path: Path, rows: Iterable[Sequence]) -> None:
    """Writes a CSV file in UTF-8, complete or not at all; the first row is its header."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def write_table(path: Path, rows: Sequence[Sequence[str]], title: str) -> None:
    """Writes a table for readers as aligned text under a title (`path`.txt), as CSV and as LaTeX (package booktabs).

    Args:
        path: without suffix
        rows: cells of text, the first row is the header, the first column names the rows; a cell that ends with `BEST`
            keeps that mark in the text, is bold in LaTeX, and loses it in the CSV file
    """
    import pandas  # takes a second, and most stages write CSV only
    frame = pandas.DataFrame(rows[1:], columns=list(rows[0]))
    unmarked = frame.map(lambda cell: cell.removesuffix(BEST))
    legend = f"\n{BEST} best\n" if (frame != unmarked).any(axis=None) else ""
    write_rows(path.with_suffix(".csv"), [rows[0], *unmarked.to_numpy()])
    for suffix, text in ((".txt", f"{title.strip()}\n\n{_as_text(frame)}\n{legend}"),
                         (".tex", _as_latex(unmarked, frame != unmarked))):
        with atomic_path(path.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _as_text(frame: "pandas.DataFrame") -> str:
    """The first column to the left, all others to the right, so that decimal points stand below each other."""
    first, *others = frame.columns
    padded = frame[others].map(lambda cell: cell if cell.endswith(BEST) else cell + " ")  # where others have the mark
    padded = padded.rename(columns=" {} ".format).set_axis(frame[first].rename(None)).rename_axis(first, axis=1)
    return "\n".join(line.rstrip() for line in padded.to_string().splitlines())


def _as_latex(frame: "pandas.DataFrame", bold: "pandas.DataFrame") -> str:
    """Special characters of LaTeX escaped; `bold` says which cells are."""
    styles = bold.replace({True: "textbf:--rwrap;", False: ""})
    styler = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    columns = "l" + "r" * (frame.shape[1] - 1)
    text = styler.apply(lambda _: styles, axis=None).to_latex(hrules=True, column_format=columns)
    return text.replace("±", r"$\pm$")


def best_median_worst(scores: Mapping[str, float]) -> dict[str, str]:
    """The images to show of many: {"best": stem, "median": stem, "worst": stem}.

    Args:
        scores: stem -> score, the higher the better; an image without one (NaN) counts as worse than all others, of
            equals the first one counts as better, of an even number the worse of the two in the middle is the median
    """
    def rank(stem: str) -> float:
        return math.inf if math.isnan(scores[stem]) else -scores[stem]

    ranked = sorted(scores, key=rank)
    return {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
