"""Which files of a folder are images, by the stem that identifies each; what else lies there is told."""
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from utils.errors import InputError
from utils.files import has_16_bits
from utils.names import name_some, plain

if TYPE_CHECKING:
    from utils.datasets.description import DatasetDescription

SAME_SUFFIX = {".jpeg": ".jpg", ".tiff": ".tif"}
IMAGES = (".png", ".jpg", ".tif", ".bmp", ".gif", ".webp", ".jp2", ".dcm", ".dicom", ".img", ".pgm", ".npy", ".nii",
          ".mha")
FOLDER_MARK = "__"  # between folder and name in a stem, which names files, too


def make_stem(name: str, subfolders: bool) -> str:
    """What identifies an image of that name, which may have folders and a suffix: the name, or with `subfolders` the
    folders too, which `FOLDER_MARK` ends."""
    path = PurePosixPath(name.replace("\\", "/"))
    folders = [part for part in path.parts[:-1] if part not in ("/", ".")] if subfolders else []
    return plain(FOLDER_MARK.join([*folders, path.stem]))


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

    for path in list_files(folder):
        name = path.relative_to(folder).as_posix()
        if _suffix(path.suffix) not in wanted:
            if _suffix(path.suffix) in IMAGES:
                leave_out(f"without the suffix {' or '.join(sorted(wanted))}", name)
        elif path.parent != folder and not subfolders:
            leave_out("in folders inside it, which `subfolders = true` reads", name)
        elif not path.stem.endswith(ending):
            leave_out(f"without the ending {ending!r}", name)
        else:
            stem = make_stem(name[:len(name) - len(path.suffix) - len(ending)] + path.suffix, subfolders)
            if stem in found.paths:
                raise InputError(f"{path}: names the same image as {found.paths[stem].relative_to(folder)}; keep one")
            found.paths[stem] = path
    return FoundFiles(dict(sorted(found.paths.items())), found.left_out)


def find_images(description: "DatasetDescription", folder: Path) -> FoundFiles:
    """The images of a data set in its folder. Raises InputError as `find_files`."""
    return find_files(description.locate(folder, description.image_folder), description.image_suffixes,
                      description.image_ending, description.subfolders)


@lru_cache
def any_of_16_bits(paths: tuple[Path, ...], changed: int) -> bool:
    """Whether one of these images has more than 8 bits a pixel. `changed` is when their folder did, in nanoseconds."""
    return any(map(has_16_bits, paths))


def _suffix(suffix: str) -> str:
    return SAME_SUFFIX.get(suffix.lower(), suffix.lower())


def list_files(folder: Path) -> list[Path]:
    """All files, sorted, through links to folders, without what is hidden."""
    paths = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        paths += [Path(place, name) for name in names if not name.startswith(".") and name != "Thumbs.db"]
    return sorted(paths)
