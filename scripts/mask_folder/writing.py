"""Masks of all images in a folder, written as they are made; a rerun makes those that are missing."""
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from utils.datasets.dicom import SUFFIXES as DICOM_SUFFIXES
from utils.datasets.dicom import is_dicom, read_spacing
from utils.datasets.dicom_seg import can_write_dicom_seg, write_dicom_seg
from utils.datasets.image_files import list_names
from utils.errors import InputError, say_once
from utils.files import atomic_path, write_png
from utils.names import IMAGE_SUFFIXES, READ_SUFFIXES, VOLUME_SUFFIXES, name_some
from utils.overlay import add_legend, class_colors, overlay, shrink, to_grey

LONGEST = 1024  # pixels of an overlay's longer side
SOME_FAILED = 3  # exit code
SAVED_EVERY = 10  # seconds


class Made(NamedTuple):
    """What was made of one image.

    Attributes:
        grey: the image, uint8 or uint16, (H, W)
        masks: bool, (C, H, W)
        estimates: of the Dice of each mask, float, (C,), NaN where there is none; None without SAM
    """

    grey: np.ndarray
    masks: np.ndarray
    estimates: np.ndarray | None


@dataclass(frozen=True)
class Recipe:
    """How masks are made of an image.

    Attributes:
        labels: in channel order
        made: what the masks depend on beside the images: those of another recipe are never continued
        maker: who made them, for DICOM
        notice: what must be said of them
        make: of an image file, given with its path in the folder. Raises InputError where it can't be read
        origin: what the masks depend on beside the image's file, by its path in the folder
    """

    labels: Sequence[str]
    made: Mapping[str, Any]
    maker: str
    notice: str
    make: Callable[[str, Path], Made]
    origin: Callable[[str], Mapping[str, Any]] = lambda image: {}


class MaskFolder:
    """Images and where their masks go."""

    def __init__(self, images: Path, out: Path, recipe: Recipe, names: Mapping[str, str]):
        """`names` is as of `name_images`. Raises InputError if what lies in `out` was made in another way."""
        self.images, self.out, self.recipe, self.names = images, out, recipe, names
        self.table = out / "masks.json"
        self._made = {**recipe.made, "labels": list(recipe.labels)}
        self._entries = self._read_entries()

    def _read_entries(self) -> dict[str, dict[str, Any]]:
        """Those of an earlier run, by image."""
        if not self.table.is_file():
            return {}
        try:
            known = json.loads(self.table.read_text(encoding="utf-8"))
            entries = {entry["image"]: entry for entry in known["images"]}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.table}: not readable ({error}); remove it") from None
        if difference := [name for name, value in self._made.items() if known.get(name) != value]:
            name = difference[0]
            raise InputError(f"{self.table}: was made with {name} = {known.get(name)}, this run has "
                             f"{self._made[name]}; name another --out")
        return entries

    def run(self) -> None:
        """Makes what is missing, and says where it is. Exits with code 3 where an image can't be read."""
        failed, saved = {}, time.monotonic()
        try:
            for image, name in tqdm(self.names.items(), "images", unit="image"):
                try:
                    state = {**file_state(self.images / image), **self.recipe.origin(image)}
                    if self._is_done(image, state):
                        continue
                    self._remove_old(image)
                    self._entries[image] = {"image": image, **state, **self._write(image, name)}
                except InputError as error:
                    failed[image] = str(error)
                if time.monotonic() - saved > SAVED_EVERY:
                    self._save(failed)
                    saved = time.monotonic()
        finally:
            self._save(failed)
        print(f"masks, overlays and areas: {self.table}")
        values = [of_label for entry in self._entries.values() for of_label in entry["labels"].values()]
        if estimated := sum(of_label["estimated_dice"] is not None for of_label in values):
            print(f"of {sum(of_label['area'] > 0 for of_label in values)} masks {estimated} have an estimate of SAM")
        if self.recipe.notice:
            print(f"refined masks: {self.recipe.notice}")
        if failed:
            print(*(f"not read: {text}" for text in failed.values()), f"{len(failed)} images failed", sep="\n",
                  file=sys.stderr)
            sys.exit(SOME_FAILED)

    def _is_done(self, image: str, state: dict[str, Any]) -> bool:
        entry = self._entries.get(image)
        return (entry is not None and state.items() <= entry.items()
                and all((self.out / file).is_file() for file in files_of(entry)))

    def _remove_old(self, image: str) -> None:
        if entry := self._entries.pop(image, None):
            for file in files_of(entry):
                (self.out / file).unlink(missing_ok=True)

    def _save(self, failed: dict[str, str]) -> None:
        entries = [self._entries[image] for image in self.names if image in self._entries]
        table = {**self._made, "notice": self.recipe.notice, "images": entries,
                 "failed": [{"image": image, "error": error} for image, error in failed.items()]}
        with atomic_path(self.table) as temporary:
            temporary.write_text(json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")

    def _write(self, image: str, name: str) -> dict[str, Any]:
        """Writes masks and overlay of one image; returns its entry."""
        source, labels = self.images / image, self.recipe.labels
        grey, masks, estimates = self.recipe.make(image, source)
        estimates = np.full(len(masks), np.nan) if estimates is None else estimates
        areas = np.count_nonzero(masks, axis=(1, 2)).tolist()
        colors = class_colors(len(masks))
        shown = [(f"{label} {estimate:.2f}".removesuffix(" nan"), color) for label, estimate, color, area in
                 zip(labels, estimates, colors, areas, strict=True) if area]
        picture = f"overlays/{name}.png"
        write_png(self.out / picture, add_legend(overlay(shrink(to_grey(grey), LONGEST), masks, colors), shown))
        values = {label: {"area": area, "estimated_dice": None if np.isnan(estimate) else round(float(estimate), 4)}
                  for label, area, estimate in zip(labels, areas, estimates, strict=True)}
        entry = {"width": masks.shape[2], "height": masks.shape[1], "overlay": picture,
                 "files": write_masks(self.out, f"masks/{name}", masks, labels), "labels": values}
        return {**entry, **self._add_dicom(source, name, masks, values)} if is_dicom(source) else entry

    def _add_dicom(self, source: Path, name: str, masks: np.ndarray, values: dict[str, dict[str, Any]]
                   ) -> dict[str, Any]:
        """What the header of a DICOM file adds to the entry: areas in mm², a DICOM segmentation."""
        more = {}
        if spacing := read_spacing(source):
            more["pixel_spacing"] = list(spacing)
            for of_label in values.values():
                of_label["area_mm2"] = round(of_label["area"] * spacing[0] * spacing[1], 3)
        if can_write_dicom_seg():
            try:
                write_dicom_seg(self.out / f"dicom_seg/{name}.dcm", source, masks, self.recipe.labels,
                                self.recipe.maker)
                more["dicom_seg"] = f"dicom_seg/{name}.dcm"
            except InputError as error:
                say_once(str(error))
        return more


def files_of(entry: Mapping[str, Any]) -> list[str]:
    """All that was written of an image."""
    return [*entry["files"], entry["overlay"], *([entry["dicom_seg"]] if "dicom_seg" in entry else [])]


def name_images(folder: Path, out: Path) -> dict[str, str]:
    """Path of each image in the folder -> that of its masks, without suffix where no other image has that name.

    Raises InputError if there is none.
    """
    inside = out.resolve()
    names = [name for name in map(Path, list_names(folder)) if inside not in (folder / name).resolve().parents]
    paths = [name for name in names
             if name.suffix.lower() in (*READ_SUFFIXES, *DICOM_SUFFIXES) or is_dicom(folder / name)]
    if not paths:
        raise InputError(f"{folder}: holds no image ({', '.join(READ_SUFFIXES)}, DICOM); name another folder with "
                         "--images")
    taken = set(paths)
    if others := [name for name in names
                  if name not in taken and name.suffix.lower() in (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)]:
        say_once(f"{folder}: left out: {len(others)} files that are no images of the kinds that are read "
                 f"({name_some(others)}); save them as PNG")
    return name_masks(paths)


def name_masks(paths: Sequence[Path]) -> dict[str, str]:
    """As `name_images`, of these paths."""
    count = Counter(path.with_suffix("") for path in paths)
    return {path.as_posix(): (path.with_suffix("") if count[path.with_suffix("")] == 1 else path).as_posix()
            for path in paths}


def file_state(path: Path) -> dict[str, int]:
    """What tells that an image was replaced. Raises InputError where it can't be opened."""
    try:
        with path.open("rb"):
            stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make it readable, or remove it") from None
    return {"bytes": stat.st_size, "changed": stat.st_mtime_ns}


def write_masks(out: Path, name: str, masks: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Writes the masks of one image, bool (C, H, W); returns the files in `out`: one, or as many as there are labels
    where these overlap."""
    if masks.sum(axis=0, dtype=np.uint16).max() <= 1:
        values = np.arange(1, len(masks) + 1, dtype=np.uint8 if len(masks) < 256 else np.uint16)
        write_png(out / f"{name}.png", (masks * values[:, None, None]).sum(axis=0, dtype=values.dtype))
        return [f"{name}.png"]
    files = [f"{name}.{as_file_name(label)}.png" for label in labels]
    for file, mask in zip(files, masks, strict=True):
        write_png(out / file, np.uint8(255) * mask)
    return files


def as_file_name(label: str) -> str:
    """With the code of each character that some file systems don't take."""
    return re.sub(r'[<>:"/\\|?*%]', lambda match: f"%{ord(match[0]):02X}", label)
