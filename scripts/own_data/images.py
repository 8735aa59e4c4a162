"""The radiographs of a folder, and their place in a data set of one's own."""
import re
import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from utils.datasets.dicom import SUFFIXES as DICOM_SUFFIXES
from utils.datasets.dicom import is_dicom, read_dicom
from utils.datasets.image_files import FOLDER_MARK, list_names
from utils.digests import READERS
from utils.errors import InputError
from utils.files import has_16_bits, image_size, read_grey, write_png
from utils.names import IMAGE_SUFFIXES, READ_SUFFIXES, name_some, plain
from utils.overlap import map_threaded

PREPARED = "prepared"  # the folder of images and annotations in that of the data set
LONGEST_STEM = 220  # bytes, as files of results have longer names
OTHER = (".json", ".xml", ".txt", ".csv", ".zip", ".md", ".pdf", ".toml")


@dataclass(frozen=True)
class Radiograph:
    """One image of the folder.

    Attributes:
        name: its path in the folder, with /
        stem: what identifies it in the data set
        place: where the data set has it
        size: (H, W) as it is shown
        patient: "" where nothing says it
        turn: whether it is to be mirrored
        is_mirrored: whether it is the mirror image of what was drawn on, then
    """

    name: str
    stem: str
    path: Path
    place: Path
    size: tuple[int, int] = (0, 0)
    bits: int = 8
    patient: str = ""
    turn: bool = False
    is_mirrored: bool = False

    @property
    def subset(self) -> str:
        """The folders that it lies in, as a name of a split may be among them."""
        return str(PurePosixPath(self.name).parent)


@dataclass(frozen=True)
class Radiographs:
    """All of them by stem, and what was left out of the folder: why -> names."""

    images: dict[str, Radiograph]
    left_out: dict[str, list[str]]

    @cached_property
    def in_folders(self) -> bool:
        """Whether stems have folders."""
        return any(FOLDER_MARK in stem for stem in self.images)

    def describe(self) -> str:
        """Numbers, sizes and bits, in one line."""
        images = list(self.images.values())
        heights, widths = zip(*(image.size for image in images), strict=True)
        kinds = Counter(Path(image.name).suffix.lower() or "no suffix" for image in images)
        bits = Counter(image.bits for image in images)
        return (f"{len(images)} images ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}), "
                f"{min(widths)} to {max(widths)} pixels wide and {min(heights)} to {max(heights)} high, "
                + ", ".join(f"{count} of {number} bits" for number, count in sorted(bits.items())))


def list_images(folder: Path, others: Collection[Path] = ()) -> dict[str, Path]:
    """Name -> file, of everything in a folder that may be a radiograph but `others` (files, or folders with all in
    them). Raises InputError if there is none."""
    if not folder.is_dir():
        raise InputError(f"--images {folder}: no such folder; name the one with all radiographs")
    excluded = {path.resolve() for path in others}
    found = {}
    for name in list_names(folder):
        path = folder / name
        suffix = path.suffix.lower()
        known = suffix in IMAGE_SUFFIXES or (suffix not in OTHER and is_dicom(path))
        if known and excluded.isdisjoint([path.resolve(), *path.resolve().parents]):
            found[name] = path
    if not found:
        raise InputError(f"--images {folder}: holds no image; name the folder with all radiographs (PNG, JPEG, TIFF, "
                         "DICOM)")
    return found


def take_in(paths: dict[str, Path], place: Path, mirror: str | None = None, mirrored: str | None = None,
            patient: str | None = None) -> Radiographs:
    """Brings images (name -> file) into the folder `place`, as links, or as PNG files where they come as DICOM or are
    to be mirrored. What else lies there is removed.

    Args:
        mirror: images whose names this regular expression finds are mirrored here
        mirrored: those whose names this one finds are mirrored already
        patient: regular expression whose first group (or else all that it finds) in the name is the patient
    Raises:
        InputError: two images have one stem, no image is readable, or `patient` doesn't find anything in a name.
    """
    shared = common_folder(paths)
    found, images, left_out = {}, {}, {}
    for name, path in paths.items():
        inner = name[len(shared):]
        is_file = path.suffix.lower() in IMAGE_SUFFIXES
        stem = plain((inner[:-len(path.suffix)] if is_file else inner).replace("/", FOLDER_MARK))
        if stem in found:
            raise InputError(f"{path}: names the same image as {found[stem].name}; keep one, or give it another name")
        turn, before = (pattern is not None and re.search(pattern, name) is not None for pattern in (mirror, mirrored))
        found[stem] = Radiograph(name, stem, path, place / stem, patient=find_patient(name, patient), turn=turn,
                                 is_mirrored=turn != before)
    placed = zip(found.items(), map_threaded(_try_to_place, found.values(), READERS), strict=True)
    for (stem, image), result in tqdm(placed, "images", len(found), unit="image", leave=False):
        if isinstance(result, InputError):
            left_out.setdefault(str(result).removeprefix(f"{image.path}: "), []).append(image.name)
        else:
            images[stem] = result
    if not images:
        why, names = next(iter(left_out.items()))
        raise InputError(f"none of {len(paths)} images is readable, such as {names[0]}: {why}")
    kept = {image.place for image in images.values()}
    for path in place.iterdir():
        if path not in kept:
            path.unlink()
    return Radiographs(dict(sorted(images.items())), left_out)


def common_folder(names: Collection[str]) -> str:
    """The start of all names that are folders, with the / at its end; "" if they share none."""
    parts = [name.split("/")[:-1] for name in names]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0] + "/")
    return "".join(shared)


def find_patient(name: str, pattern: str | None) -> str:
    """The patient by the name of an image. Raises InputError if there is a pattern that doesn't find one."""
    if pattern is None:
        return ""
    match = re.search(pattern, name)
    if match is None:
        raise InputError(f"--patient {pattern!r}: finds nothing in {name!r}; give a regular expression that finds the "
                         "patient in each name, such as '^[^_]+' for what stands before the first _")
    return match[1] if match.re.groups else match[0]


def _try_to_place(image: Radiograph) -> Radiograph | InputError:
    try:
        return _place(image)
    except InputError as error:
        return error


def _place(image: Radiograph) -> Radiograph:
    """The image in its place, with what its file says of it. Raises InputError if it isn't readable."""
    suffix = image.path.suffix.lower()
    if len(image.stem.encode()) > LONGEST_STEM:
        raise InputError(f"its name with its folders has more than {LONGEST_STEM} bytes; shorten their names")
    if suffix not in READ_SUFFIXES and (suffix in DICOM_SUFFIXES or is_dicom(image.path)):
        return _convert_dicom(image)
    if suffix not in READ_SUFFIXES:
        raise InputError(f"files of the kind {suffix} are not read; save it as PNG")
    size, bits = image_size(image.path), 16 if has_16_bits(image.path) else 8
    pixels = read_grey(image.path)  # the header doesn't show whether all is there
    place = image.place.with_name(image.stem + (".png" if image.turn else suffix))
    if image.turn:
        write_png(place, pixels[:, ::-1].copy())
    else:
        link(image.path, place)
    return replace(image, place=place, size=size, bits=bits)


def _convert_dicom(image: Radiograph) -> Radiograph:
    place = image.place.with_name(f"{image.stem}.png")
    read = read_dicom(image.path)
    pixels = read.pixels[:, ::-1].copy() if image.turn else read.pixels
    write_png(place, pixels)
    return replace(image, place=place, size=pixels.shape, bits=16, patient=image.patient or read.patient)


def link(source: Path, place: Path) -> None:
    """Makes `place` a link to a file, or a copy where links aren't possible."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        place.symlink_to(source.resolve())
    except OSError:  # such as on Windows without the right to
        shutil.copy2(source, place)


def copy(source: Path, place: Path) -> None:
    """Copies a file into a folder that need not be there yet."""
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)


def propose_input_size(sizes: Sequence[tuple[int, int]], area: int = 384 * 224, step: int = 32) -> tuple[int, int]:
    """(H, W) of the network's input: of the median aspect, in steps of 32 pixels, about as many pixels as GRAZPEDWRI-DX
    has there, and not more than the images."""
    heights, widths = np.array(sizes, float).T
    aspect, area = np.median(heights / widths), min(area, np.median(heights * widths))
    height, width = (max(step, step * round(float(side) / step)) for side in (np.sqrt(area * aspect),
                                                                              np.sqrt(area / aspect)))
    return height, width


def describe_left_out(left_out: dict[str, list[str]], what: str) -> list[str]:
    """What was left out and why, for people."""
    return [f"{len(names)} {what} ({name_some(names)}): {why}" for why, names in left_out.items()]
