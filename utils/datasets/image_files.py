"""Which files of a folder are images, by the stem that identifies each; what else lies there is told."""
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from utils.errors import InputError
from utils.files import has_16_bits
from utils.names import IMAGE_SUFFIXES, name_some, plain

if TYPE_CHECKING:
    from utils.datasets.description import DatasetDescription

SAME_SUFFIX = {".jpeg": ".jpg", ".tiff": ".tif"}
SUFFIX = re.compile(r"\.(?=[^.]*[A-Za-z])[A-Za-z0-9]{1,5}$")  # not the end of a number with points, as DICOM has
UPLOADED = re.compile(r"^[0-9a-f]{8}-")
IN_FOLDERS = ("put the images into such folders, and give `--images` the folder that holds these (in a description "
              "written by hand `subfolders = true`)")
FOLDER_MARK = "__"  # between folder and name in a stem, which names files, too


def make_stem(name: str, subfolders: bool) -> str:
    """What identifies an image of that name, which may have folders and a suffix, or be a URL: the name, or with
    `subfolders` the folders too, which `FOLDER_MARK` ends."""
    if "://" in name:
        name = unquote(urlsplit(name).path)
    path = PurePosixPath(name.replace("\\", "/"))
    folders = [part for part in path.parts[:-1] if part not in ("/", ".")] if subfolders else []
    return plain(FOLDER_MARK.join([*folders, SUFFIX.sub("", path.name)]))


@dataclass(frozen=True)
class FoundFiles:
    """The files of a folder.

    Attributes:
        paths: stem -> file, sorted by stem
        left_out: why -> names of the files in the folder that don't count
    """

    paths: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def describe(self, what: str) -> list[str]:
        """What was left out, for people."""
        return [f"{len(names)} {what} {why} ({name_some(names)})" for why, names in self.left_out.items()]


def find_files(folder: Path, suffixes: Sequence[str], ending: str = "", subfolders: bool = False) -> FoundFiles:
    """The files of a folder by their stems. Hidden ones don't count, nor do those that other tools put anywhere.

    Args:
        suffixes: of the files, whatever their case; .jpeg is .jpg, .tiff is .tif
        ending: of their names before the suffix, which the stem lacks
        subfolders: whether those of folders inside count, too; their stem has the folder
    Raises:
        InputError: two files have one stem.
    """
    wanted, found = {_suffix(suffix) for suffix in suffixes}, FoundFiles()

    def leave_out(why: str, name: str) -> None:
        found.left_out.setdefault(why, []).append(name)

    for name in list_names(folder):
        start, dot, suffix = name.rpartition(".")
        suffix = _suffix(dot + suffix)
        if suffix not in wanted:
            if suffix in IMAGE_SUFFIXES:
                leave_out(f"without the suffix {' or '.join(sorted(wanted))}", name)
        elif "/" in name and not subfolders:
            leave_out("in folders inside it, which `subfolders = true` reads", name)
        elif not start.endswith(ending):
            leave_out(f"without the ending {ending!r}", name)
        else:
            stem = plain(start.removesuffix(ending).replace("/", FOLDER_MARK))
            if stem in found.paths:
                twin = found.paths[stem].relative_to(folder)
                raise InputError(f"{folder / name}: names the same image as {twin}; keep one")
            found.paths[stem] = folder / name
    return FoundFiles(dict(sorted(found.paths.items())), found.left_out)


def find_images(description: "DatasetDescription", folder: Path) -> FoundFiles:
    """The images of a data set in its folder. Raises InputError as `find_files`."""
    return find_files(description.locate(folder, description.image_folder), description.image_suffixes,
                      description.image_ending, description.subfolders)


class Places:
    """Finds images by what annotations call them, which may be in more or fewer folders than the images are, and may
    begin with what Label Studio puts before the names of uploaded files."""

    def __init__(self, stems: Collection[str]):
        self._stems, self._ends = frozenset(stems), Counter(stem.split(FOLDER_MARK)[-1] for stem in stems)
        self._by_end = {stem.split(FOLDER_MARK)[-1]: stem for stem in stems}

    def find(self, stem: str) -> str | None:
        """The stem of the image that an annotation calls `stem`, with its folders as of `make_stem`; None if there is
        none, or it may be one of several."""
        parts = stem.split(FOLDER_MARK)
        for start in range(len(parts)):
            if (shorter := FOLDER_MARK.join(parts[start:])) in self._stems:
                return shorter
        for end in (parts[-1], UPLOADED.sub("", parts[-1])):
            if self._ends[end] == 1:
                return self._by_end[end]
        return None


@lru_cache
def any_of_16_bits(paths: tuple[Path, ...], changed: int) -> bool:
    """Whether one of these images has more than 8 bits a pixel. `changed` is when their folder did, in nanoseconds."""
    return any(map(has_16_bits, paths))


def _suffix(suffix: str) -> str:
    return SAME_SUFFIX.get(suffix.lower(), suffix.lower())


def list_names(folder: Path) -> list[str]:
    """All files, sorted, as seen from the folder, through links to folders, without what is hidden."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        inside = os.path.relpath(place, folder)
        start = "" if inside == "." else inside.replace(os.sep, "/") + "/"
        found += [start + name for name in names if not name.startswith(".") and name != "Thumbs.db"]
    return sorted(found)
