"""What the values or colors of masks mean, as people and tools write it down."""
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.datasets.coco import read_json
from utils.datasets.image_files import list_names
from utils.datasets.label_maps import BACKGROUND, Color, read_colors
from utils.errors import InputError
from utils.names import plain
from utils.tables import read_rows

LISTS = ("classes.txt", "class_names.txt", "labels.txt", "label_names.txt")
NAMES, VALUES = ("label", "name", "class"), (("value",), ("id",), ("r", "g", "b"), ("red", "green", "blue"))  # columns
COLOR_LISTS = ("label_colors.txt", "class_colors.txt")  # red green blue name, as CamVid has it
IGNORED = ("ignore", "__ignore__")  # as nnU-Net and labelme call what nobody decided


class RegionsError(InputError):
    """A table whose labels are several values each."""


@dataclass(frozen=True)
class MaskTable:
    """What a value or a color means: label -> value, or label -> (red, green, blue)."""

    values: dict[str, int] = field(default_factory=dict)
    colors: dict[str, Color] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def read(cls, folder: Path, wishes: Sequence[str]) -> "MaskTable":
        """Of `LABEL=VALUE` and `LABEL=R,G,B`, or a file; else of a table in the folder of the masks or above it: CVAT's
        labelmap.txt, nnU-Net's dataset.json, a CSV file with the columns label and value (or r, g, b), or a list of
        names such as labelme's class_names.txt.

        Raises:
            InputError: one says nothing, or isn't readable.
        """
        if len(wishes) == 1 and Path(wishes[0]).is_file():
            return cls._of_file(Path(wishes[0]), True)
        if wishes:
            return cls._of_pairs([wish.rpartition("=")[::2] for wish in wishes], "--values")
        candidates = [folder / name for name in list_names(folder)] + sorted(folder.resolve().parent.glob("*"))
        tables = [path for path in candidates if path.suffix.lower() in (".txt", ".json", ".csv") and path.is_file()]
        for path in sorted(tables, key=lambda path: path.name != "labelmap.txt"):
            if (table := cls._of_file(path, False)).source:
                return table
        return cls()

    @classmethod
    def _of_file(cls, path: Path, is_named: bool) -> "MaskTable":
        """An empty table where the file isn't one, unless the user named it. Raises InputError for nnU-Net's regions.
        """
        try:
            if path.suffix.lower() == ".json":
                table = read_json(path)
                table = table.get("labels", table) if isinstance(table, dict) else {}
                if not isinstance(table, dict):
                    raise InputError(f"{path}: is no table of label -> value")
                if path.name == "dataset.json" and (regions := [
                        name for name, value in table.items() if isinstance(value, list) and len(value) > 1]):
                    raise RegionsError(f"{path}: {regions[0]} has several values; say what each value is: --values "
                                       "LABEL=VALUE ...")
                pairs = [(name, ",".join(map(str, value)) if isinstance(value, list) else str(value))
                         for name, value in table.items()]
                if pairs and all(name.isdigit() for name, _ in pairs):  # as older versions of nnU-Net have it
                    pairs = [(value, name) for name, value in pairs]
            elif path.suffix.lower() == ".csv":
                pairs = _read_pairs(path)
            elif path.name.lower() in COLOR_LISTS:
                pairs = _read_color_list(path)
            elif path.name.lower() in LISTS:
                pairs = _read_list(path)
            else:
                pairs = [(name, ",".join(map(str, color))) for name, color in read_colors(path).items()]
            return cls._of_pairs(pairs, path.name)
        except InputError as error:
            if is_named or isinstance(error, RegionsError):
                raise
        except UnicodeDecodeError as error:
            if is_named:
                raise InputError(f"{path}: not readable as UTF-8 ({error}); save it so") from None
        return cls()

    @classmethod
    def _of_pairs(cls, pairs: Sequence[tuple[str, str]], source: str) -> "MaskTable":
        values, colors = {}, {}
        for name, text in pairs:
            match = re.fullmatch(r"\s*(\d+)(?:\s*,\s*(\d+)\s*,\s*(\d+))?\s*", text)
            if not match or not plain(name):
                raise InputError(f"{source}: {name}={text} is not a label and its value, such as femur=1, or its "
                                 "color, such as femur=255,0,0; correct it")
            if match[2] is None:
                values[plain(name)] = int(match[1])
            else:
                colors[plain(name)] = tuple(map(int, match.groups()))
        if bool(values) == bool(colors):
            raise InputError(f"{source}: give each label a value, or each one a color")
        values = {name: value for name, value in values.items() if value != 0 and name not in IGNORED}
        counts = Counter([*values.values(), *(color for color in colors.values() if any(color))])
        if twins := [name for name, value in {**values, **colors}.items() if counts[value] > 1]:
            raise InputError(f"{source}: {' and '.join(twins)} are the same; give each label a value or color of its "
                             "own")
        return cls(values, colors, source)


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    """Name and value, or name and color, of the rows of a CSV file."""
    rows = [{plain(column).casefold(): plain(cell) for column, cell in row.items() if column}
            for row in read_rows(path, [])]
    name = next((column for column in NAMES if rows and column in rows[0]), None)
    for columns in VALUES:
        if name and set(columns) <= set(rows[0]):
            return [(row[name], ",".join(row[column] for column in columns)) for row in rows]
    raise InputError(f"{path}: needs the columns 'label' and 'value', or 'label', 'r', 'g' and 'b'")


def _read_color_list(path: Path) -> list[tuple[str, str]]:
    """Name and color of the lines `red green blue name`."""
    rows = [re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(.+)", plain(line)) for line in
            path.read_text(encoding="utf-8-sig").splitlines() if plain(line)]
    if not all(rows):
        raise InputError(f"{path}: needs lines such as '255 0 0 femur'")
    return [(row[4], ",".join(row.groups()[:3])) for row in rows]


def _read_list(path: Path) -> list[tuple[str, str]]:
    """Names of values, one a line: from 0 on if the first one is the background, as labelme has it, else from 1 on."""
    names = [plain(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if plain(line)]
    names = [name for name in names if name != "__ignore__"]
    first = 0 if names and names[0].strip("_").casefold() == BACKGROUND else 1
    return [(name, str(value)) for value, name in enumerate(names, first)]
