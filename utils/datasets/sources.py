"""Where the ground truth of a data set comes from: one table of its description, with the reader of what that names.

To add a source, write its table and its reader here, and add the pair to `SOURCES`: the `kind` of the table's class is
then known to every description.
"""
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from msgspec import Meta, Struct

from utils.datasets.cvat import CvatImage, draw_masks, parse_cvat
from utils.errors import InputError
from utils.files import image_size, read_label_map
from utils.paths import ROOT
from utils.tables import matching_stems

if TYPE_CHECKING:
    from utils.datasets.description import DatasetDescription

SPLITS = ("train", "val", "test")
Count = Annotated[int, Meta(ge=1)]


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a description; its keys are the fields."""


class Masks(Table, frozen=True, tag_field="kind"):
    """The table `[masks]`, whose key `kind` is the tag of its class."""


class Source(ABC):
    """Ground truth as a data set asks for it. Made of the description and the folder of the data set."""

    splits: dict[str, list[str]]  # the sorted stems of each of SPLITS

    @abstractmethod
    def mask(self, stem: str) -> np.ndarray:
        """bool, (C, H, W), at the size of the original image and not mirrored."""

    def content(self, stem: str) -> bytes:
        """What the mask is drawn from, without drawing it where that can be spared: with another mask other bytes."""
        return np.packbits(self.mask(stem)).tobytes()

    def size(self, stem: str) -> tuple[int, int]:
        """(H, W) of the mask, without drawing it where that can be spared."""
        return self.mask(stem).shape[1:]

    def keeps(self, stem: str) -> bool:
        """Whether an image of the folder counts."""
        return True

    def is_annotated(self, stem: str) -> bool:
        """Whether the image is in any split, even where it doesn't count."""
        return stem in self

    def is_mirrored(self, stem: str) -> bool:
        """Whether the image shows the mirror image of what was drawn on."""
        return False

    def __contains__(self, stem: str) -> bool:
        """Whether the ground truth of the image is known."""
        return any(stem in stems for stems in self.splits.values())


class AnnotationFile(Table, frozen=True):
    """A CVAT file, or only those of its images whose `subset` is this one."""
    file: str
    subset: str | None = None
    in_project: bool = False  # the path is relative to the project's top level


class CvatMasks(Masks, frozen=True, tag="cvat"):
    """Masks drawn in CVAT, at the size of the original images."""
    train: tuple[AnnotationFile, ...]
    val: tuple[AnnotationFile, ...]
    test: tuple[AnnotationFile, ...]
    attribute: str | None = None  # the attribute of a shape that names its label; else CVAT's own label does
    mirror_stems_with: str | None = None  # the images of these stems are mirrored ones, the drawings are not
    unlabeled_ground_truth: tuple[AnnotationFile, ...] = ()  # known masks of unlabeled images, for measuring only


class CvatSource(Source):
    """Masks from CVAT files. Images that the metadata table doesn't keep (other projections) are left out."""

    def __init__(self, description: "DatasetDescription", folder: Path):
        """Reads all annotations.

        Raises:
            InputError: a file is missing or wrong, a split is empty, an image is in two splits.
        """
        self._description, self._folder = description, folder
        metadata, self._kept = description.metadata, None
        if metadata is not None:
            table = description.locate(folder, metadata.file)
            self._kept = matching_stems(table, metadata.stem_column, metadata.keep)
        self._images: dict[str, CvatImage] = {}
        self._annotated: set[str] = set()
        self.splits = {split: self._read(getattr(description.masks, split)) for split in SPLITS}
        for split, stems in self.splits.items():
            if not stems:
                raise InputError(f"{folder}: no image is left in the {split} split of {description.name}; the subset "
                                 "in its annotations or the values in its table of images must match its description")

    def _read(self, files: Sequence[AnnotationFile]) -> list[str]:
        """Takes in the images of one split and gives their stems in sorted order."""
        stems = []
        for path, image in self._parse(files):
            if image.stem in self._annotated:
                raise InputError(f"{path}: image {image.stem} is annotated in another file or split too; keep one")
            self._annotated.add(image.stem)
            if self.keeps(image.stem):
                self._images[image.stem] = image
                stems.append(image.stem)
        return sorted(stems)

    def _parse(self, files: Sequence[AnnotationFile]) -> list[tuple[Path, CvatImage]]:
        images = []
        for file in files:
            path = ROOT / file.file if file.in_project else self._description.locate(self._folder, file.file)
            parsed = parse_cvat(path, self._description.masks.attribute)
            images += [(path, image) for image in parsed if file.subset in (None, image.subset)]
        return images

    @cached_property
    def _unlabeled_ground_truth(self) -> dict[str, CvatImage]:
        return {image.stem: image for _, image in self._parse(self._description.masks.unlabeled_ground_truth)}

    @cached_property
    def _mirrored_stems(self) -> frozenset[str] | None:
        metadata = self._description.metadata
        if metadata is None or metadata.mirror is None:
            return None
        table = self._description.locate(self._folder, metadata.file)
        return matching_stems(table, metadata.stem_column, metadata.mirror)

    def keeps(self, stem: str) -> bool:
        """Whether the metadata table lets this image count; all do where there is no table."""
        return self._kept is None or stem in self._kept

    def is_annotated(self, stem: str) -> bool:
        return stem in self._annotated

    def is_mirrored(self, stem: str) -> bool:
        """The table decides, else the stem."""
        if self._mirrored_stems is not None:
            return stem in self._mirrored_stems
        marker = self._description.masks.mirror_stems_with
        return marker is not None and marker in stem

    def __contains__(self, stem: str) -> bool:
        return stem in self._images or stem in self._unlabeled_ground_truth

    def _image(self, stem: str) -> CvatImage:
        return self._images[stem] if stem in self._images else self._unlabeled_ground_truth[stem]

    def size(self, stem: str) -> tuple[int, int]:
        """(H, W) that the annotation gives the image."""
        image = self._image(stem)
        return image.height, image.width

    def content(self, stem: str) -> bytes:
        image = self._image(stem)
        shapes = [(shape.anatomy, shape.rle if shape.polygon is None else shape.polygon.tobytes())
                  for shape in image.shapes]
        return repr((image.width, image.height, self.is_mirrored(stem), shapes)).encode()

    def mask(self, stem: str) -> np.ndarray:
        return draw_masks(self._image(stem), self._description.labels)


class StoredMasks(Masks, frozen=True, tag="mask_store"):
    """Masks in one HDF5 file (`utils.mask_store`), split by sorted stems: first `train`, then `val`, the rest test."""
    file: str
    train: Count
    val: Count


class StoredSource(Source):
    """Masks from an HDF5 file."""

    def __init__(self, description: "DatasetDescription", folder: Path):
        """Raises InputError if the file is missing, wrong, or holds too few images for the splits."""
        from utils.mask_store import MaskStore  # HDF5, which other sources do without
        path = description.locate(folder, description.masks.file)
        if not path.is_file():
            raise InputError(f"{path}: no such masks; make them with `{description.prepare}`")
        self._store = MaskStore(path, description.labels)
        self.splits = split_by_counts(path, self._store.stems, description)

    def mask(self, stem: str) -> np.ndarray:
        return self._store.mask(stem)


class LabelMaps(Masks, frozen=True, tag="label_maps"):
    """One grey PNG per image in `folder`: 0 is the background, value v the v-th label; split as `StoredMasks`."""
    folder: str
    train: Count
    val: Count


class LabelMapSource(Source):
    """Masks from label maps."""

    def __init__(self, description: "DatasetDescription", folder: Path):
        """Raises InputError if the folder is missing or holds too few masks for the splits."""
        self._folder, self._labels = description.locate(folder, description.masks.folder), description.labels
        if not self._folder.is_dir():
            raise InputError(f"{self._folder}: no such folder of masks; put them there with "
                             f"`{description.prepare}`")
        stems = sorted(path.stem for path in self._folder.glob("[!.]*.png"))
        self.splits = split_by_counts(self._folder, stems, description)

    def size(self, stem: str) -> tuple[int, int]:
        """(H, W) from the file's header."""
        return image_size(self._folder / f"{stem}.png")

    def mask(self, stem: str) -> np.ndarray:
        """As in `Source`.

        Raises:
            InputError: the file isn't a readable image, or has a value beyond the last label.
        """
        path = self._folder / f"{stem}.png"
        values = read_label_map(path)
        if values.max() > len(self._labels):
            raise InputError(f"{path}: has the value {values.max()}, but there are {len(self._labels)} labels; use the "
                             "masks of index values (0 background, 1 the first label), not those made to be looked at")
        return values == np.arange(1, len(self._labels) + 1)[:, None, None]


def split_by_counts(where: Path, stems: Sequence[str], description: "DatasetDescription") -> dict[str, list[str]]:
    """The splits of sorted stems: first the training images, then validation, the rest test.

    Raises:
        InputError: none is left for test; the message says `where` the masks lie.
    """
    train, val = description.masks.train, description.masks.val
    if len(stems) <= train + val:
        raise InputError(f"{where}: holds {len(stems)} masks, more than {train} + {val} are needed for training, "
                         f"validation and test; complete it with `{description.prepare}`")
    return {"train": list(stems[:train]), "val": list(stems[train:train + val]), "test": list(stems[train + val:])}


SOURCES: dict[type[Masks], type[Source]] = {
    CvatMasks: CvatSource, StoredMasks: StoredSource, LabelMaps: LabelMapSource}
