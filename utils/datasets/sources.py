"""Where the ground truth of a data set comes from: one table of its description, with the reader of what that names.

To add a source, write its table and its reader here, and add the pair to `SOURCES`: the `kind` of the table's class is
then known to every description.
"""
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from msgspec import Meta, Struct, field

from utils.datasets.cvat import CvatImage, draw_masks, parse_cvat
from utils.datasets.image_files import FOLDER_MARK, find_files, find_images, list_names
from utils.datasets.label_maps import (
    LOSSLESS,
    Color,
    check_shares,
    check_table,
    find_lossy,
    read_binary,
    read_colors,
    read_label_map,
)
from utils.errors import InputError
from utils.files import image_size
from utils.names import name_some, plain, suggest
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
    shapes: Counter[str] | None = None  # of each label in the annotated images, where that is known
    left_out: Sequence[str] = ()  # what of the annotations isn't used, and why, for people

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
    without_shapes: Literal["unlabeled", "empty"] = "unlabeled"  # what an image without shapes is
    skip_shapes: tuple[Literal["points", "polyline", "skeleton", "cuboid", "box", "ellipse"], ...] = ()  # left out


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
            self._kept = matching_stems(table, metadata.stem_column, metadata.keep, {})
        self._present = find_images(description, folder).paths if description.subfolders else {}
        self._images: dict[str, CvatImage] = {}
        self._annotated: set[str] = set()
        self._empty: list[str] = []
        self._dropped: list[str] = []
        self._unused, self._skipped = Counter(), Counter()
        self.splits = {split: self._read(getattr(description.masks, split)) for split in SPLITS}
        self.shapes = Counter(shape.anatomy for image in self._images.values() for shape in image.shapes)
        self.left_out = self._describe_rest()
        for split, stems in self.splits.items():
            if not stems:
                raise InputError(f"{folder}: no image is left in the {split} split of {description.name}; the subset "
                                 "in its annotations or the values in its table of images must match its description"
                                 + "".join(f"; left out: {text}" for text in self.left_out))

    def _read(self, files: Sequence[AnnotationFile]) -> list[str]:
        """Takes in the images of one split and gives their stems in sorted order."""
        stems = []
        for path, image in self._parse(files):
            self._unused += image.unused
            self._skipped += image.skipped
            if not image.shapes and self._description.masks.without_shapes == "unlabeled":
                self._empty.append(image.stem)
                continue
            if image.stem in self._annotated:
                raise InputError(f"{path}: image {image.stem} is annotated in another file or split too; keep one")
            self._annotated.add(image.stem)
            if self.keeps(image.stem):
                self._images[image.stem] = image
                stems.append(image.stem)
            else:
                self._dropped.append(image.stem)
        return sorted(stems)

    def _describe_rest(self) -> list[str]:
        empty, texts = sorted(set(self._empty) - self._annotated), []
        if empty:
            texts.append(f"{len(empty)} images without a shape of these labels ({name_some(empty)}): they count as not "
                         'annotated; `without_shapes = "empty"` in [masks] makes them images that show none')
        if self._dropped:
            texts.append(f"{len(self._dropped)} annotated images that the table of images doesn't keep "
                         f"({name_some(sorted(self._dropped))})")
        if self._unused:
            hints = {name: suggest(name, [plain(label) for label in self._description.labels]) for name in self._unused}
            names = sorted(self._unused, key=lambda name: (not hints[name], -self._unused[name], name))
            counted = name_some([f"{name}{hints[name]} {self._unused[name]}" for name in names], 5)
            texts.append(f"{self._unused.total()} shapes of {len(names)} labels that the description lacks: {counted}")
        if self._skipped:
            texts.append(f"{self._skipped.total()} shapes of these labels by `skip_shapes` "
                         f"({', '.join(sorted(self._skipped))})")
        return texts

    def _parse(self, files: Sequence[AnnotationFile]) -> list[tuple[Path, CvatImage]]:
        images, masks = [], self._description.masks
        for file in files:
            path = ROOT / file.file if file.in_project else self._description.locate(self._folder, file.file)
            parsed = parse_cvat(path, masks.attribute, self._description.labels, masks.skip_shapes,
                                self._description.subfolders)
            images += [(path, self._place(image)) for image in parsed if file.subset in (None, image.subset)]
        return images

    def _place(self, image: CvatImage) -> CvatImage:
        """The image by the stem of its file, which may lie in fewer folders than CVAT says."""
        parts = image.stem.split(FOLDER_MARK)
        stems = (FOLDER_MARK.join(parts[start:]) for start in range(len(parts)))
        return replace(image, stem=next((stem for stem in stems if stem in self._present), image.stem))

    @cached_property
    def _unlabeled_ground_truth(self) -> dict[str, CvatImage]:
        masks = self._description.masks
        return {image.stem: image for _, image in self._parse(masks.unlabeled_ground_truth)
                if image.shapes or masks.without_shapes == "empty"}

    @cached_property
    def _mirrored_stems(self) -> frozenset[str] | None:
        metadata = self._description.metadata
        if metadata is None or metadata.mirror is None:
            return None
        table = self._description.locate(self._folder, metadata.file)
        return matching_stems(table, metadata.stem_column, metadata.mirror, metadata.as_is, self._kept)

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
        shapes = [(shape.anatomy, shape.polygon.tobytes() if shape.polygon is not None else shape.rle or shape.ellipse)
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
        self._path, self._labels = description.locate(folder, description.masks.file), description.labels
        if not self._path.is_file():
            raise InputError(f"{self._path}: no such masks; make them with `{description.prepare}`")
        self._store = MaskStore(self._path, description.labels)
        self._names = {plain(stem): stem for stem in self._store.stems}
        self.splits = split_by_counts(self._path, sorted(self._names), description)

    def mask(self, stem: str) -> np.ndarray:
        """As in `Source`. Raises InputError as `MaskStore.mask`."""
        return self._store.mask(self._names[stem])


class LabelMaps(Masks, frozen=True, tag="label_maps"):
    """One lossless image file per image in `folder`; split as `StoredMasks`.

    folder               the label maps; 0 is the background, value v the v-th label
    ending               of their names beside the stem: "_mask" in 17_mask.png, the label map of 17.png
    values               other values: label -> value
    ignore               values that belong to no label, as 0 does
    colors               for label maps in color: label -> [red, green, blue], or a file such as CVAT's labelmap.txt
    large_labels         labels that may cover more than half of an image
    """
    folder: str
    train: Count
    val: Count
    ending: str = ""
    values: dict[str, int] = field(default_factory=dict)
    ignore: tuple[int, ...] = ()
    colors: str | dict[str, Color] | None = None
    large_labels: tuple[str, ...] = ()


class LabelMapSource(Source):
    """Masks from label maps."""

    def __init__(self, description: "DatasetDescription", folder: Path):
        """Raises InputError if the folder is missing or holds too few masks for the splits."""
        masks = self._masks = description.masks
        self._folder, self._labels = description.locate(folder, masks.folder), description.labels
        if not self._folder.is_dir():
            raise InputError(f"{self._folder}: no such folder of masks; put them there with "
                             f"`{description.prepare}`")
        if masks.values:
            check_table(f"{folder}: `values` in [masks]", self._labels, masks.values)
        self._colors = masks.colors
        if isinstance(masks.colors, str):
            table = description.locate(folder, masks.colors)
            self._colors = read_colors(table)
            check_table(str(table), self._labels, self._colors, exactly=False)
        elif masks.colors is not None:
            check_table(f"{folder}: `colors` in [masks]", self._labels, masks.colors, exactly=False)
        found = find_files(self._folder, LOSSLESS, masks.ending, description.subfolders)
        if lossy := find_lossy(found.left_out, found.paths):
            raise InputError(f"{self._folder}: {lossy}: such files keep values only roughly; export these masks as PNG "
                             "from where they were drawn")
        self._paths, self.left_out = found.paths, found.describe("files of masks")
        self.splits = split_by_counts(self._folder, list(self._paths), description)

    def size(self, stem: str) -> tuple[int, int]:
        """(H, W) from the file's header."""
        return image_size(self._paths[stem])

    def mask(self, stem: str) -> np.ndarray:
        """As in `Source`.

        Raises:
            InputError: the file isn't a readable label map, or has a value that no label has.
        """
        path = self._paths[stem]
        masks = read_label_map(path, self._labels, self._masks.values, self._masks.ignore, self._colors)
        check_shares(path, masks, self._labels, self._masks.large_labels)
        return masks


class LabelFiles(Masks, frozen=True, tag="label_files"):
    """One lossless image file per image and label, in which everything that isn't black is the label; split as
    `StoredMasks`.

    files                label -> its files as seen from the data set's folder, such as "masks/heart/{stem}.gif" or
                         "masks/{stem}_heart.png"; * stands for any name
    missing_files        "refuse", or "empty": an image that has no file of a label doesn't show it
    large_labels         labels that may cover more than half of an image
    """
    files: dict[str, str]
    train: Count
    val: Count
    missing_files: Literal["refuse", "empty"] = "refuse"
    large_labels: tuple[str, ...] = ()


class LabelFileSource(Source):
    """Masks from files of one label each."""

    def __init__(self, description: "DatasetDescription", folder: Path):
        """Raises InputError if files are missing, or are too few for the splits."""
        self._masks, self._labels = description.masks, description.labels
        check_table(f"{folder}: `files` in [masks]", self._labels, self._masks.files)
        self._paths = {label: _match_files(description, folder, self._masks.files[label]) for label in self._labels}
        stems = sorted(set().union(*self._paths.values()))
        self.left_out = []
        for label, paths in self._paths.items():
            if not (missing := [stem for stem in stems if stem not in paths]):
                continue
            if self._masks.missing_files == "refuse":
                raise InputError(f"{folder}: {len(missing)} of {len(stems)} images have no file "
                                 f"{self._masks.files[label]} ({name_some(missing)}); put it there, or say that those "
                                 f"don't show {label}: `missing_files = \"empty\"` in [masks] of the description")
            self.left_out.append(f"{len(missing)} images have no file of {label}, so don't show it")
        self.splits = split_by_counts(folder, stems, description)

    def _path_of(self, stem: str) -> dict[str, Path]:
        return {label: paths[stem] for label, paths in self._paths.items() if stem in paths}

    def size(self, stem: str) -> tuple[int, int]:
        return image_size(next(iter(self._path_of(stem).values())))

    def mask(self, stem: str) -> np.ndarray:
        """As in `Source`. Raises InputError if a file isn't a readable mask, or two are of different sizes."""
        masks, paths = np.zeros((len(self._labels), *self.size(stem)), bool), self._path_of(stem)
        for channel, label in enumerate(self._labels):
            if label in paths:
                mask = read_binary(paths[label])
                if mask.shape != masks.shape[1:]:
                    raise InputError(f"{paths[label]}: is {mask.shape[1]} x {mask.shape[0]} pixels, another mask of "
                                     f"this image {masks.shape[2]} x {masks.shape[1]}; use masks of one size")
                masks[channel] = mask
                check_shares(paths[label], masks[channel:channel + 1], [label], self._masks.large_labels)
        return masks


def _match_files(description: "DatasetDescription", folder: Path, pattern: str) -> dict[str, Path]:
    """Stem -> file of those that a pattern with {stem} names, whatever their case. Raises InputError: none, or two."""
    parts = Path(pattern).parts
    fixed = next((number for number, part in enumerate(parts) if re.search(r"[{*]", part)), len(parts))
    if pattern.count("{stem}") != 1:
        raise InputError(f"{folder}: `files` in [masks] has {pattern!r}; write {{stem}} once, where the name of the "
                         "image stands")
    place = description.locate(folder, str(Path(*parts[:fixed])))
    rule = re.escape("/".join(parts[fixed:])).replace(r"\{stem\}", "(?P<stem>[^/]+)").replace(r"\*", "[^/]*")
    paths: dict[str, Path] = {}
    for name in list_names(place):
        if match := re.fullmatch(rule, name, re.IGNORECASE):
            if (stem := plain(match["stem"])) in paths:
                raise InputError(f"{place / name}: is a mask of the same image and label as {paths[stem]}; keep one")
            paths[stem] = place / name
    if not paths:
        raise InputError(f"{place}: holds no file {'/'.join(parts[fixed:])}; put the masks there, or name their place "
                         "in `files` in [masks] of the description")
    return paths


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
    CvatMasks: CvatSource, StoredMasks: StoredSource, LabelMaps: LabelMapSource, LabelFiles: LabelFileSource}
