"""Where the ground truth of a data set comes from: one table of its description, with the reader of what that names.

To add a source, write its table and its reader here, and add the pair to `SOURCES`: the `kind` of the table's class is
then known to every description.
"""
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from msgspec import Meta, Struct, field

from utils.datasets.coco import parse_coco
from utils.datasets.cvat import CvatImage, draw_masks, parse_cvat
from utils.datasets.image_files import Places, find_files, find_images, list_names
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
from utils.datasets.labelme import parse_labelme
from utils.errors import InputError
from utils.files import image_size
from utils.names import name_some, plain, plain_stem, suggest
from utils.paths import ROOT
from utils.tables import matching_stems, read_rows

if TYPE_CHECKING:
    from utils.datasets.description import DatasetDescription

SPLITS = ("train", "val", "test")
Count = Annotated[int, Meta(ge=1)]


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a description; its keys are the fields."""


class Masks(Table, frozen=True, tag_field="kind"):
    """The table `[masks]`, whose key `kind` is the tag of its class."""


class ImageTable:
    """What the table of images says of them, see `utils.datasets.description.Metadata`."""

    def __init__(self, description: "DatasetDescription", folder: Path):
        """Raises InputError if the table is missing or lacks a column."""
        self._metadata = description.metadata
        self._path = description.locate(folder, self._metadata.file)
        self.kept = matching_stems(self._path, self._metadata.stem_column, self._metadata.keep, {})

    @cached_property
    def mirrored(self) -> frozenset[str] | None:
        """The stems of mirrored images; None where the description doesn't say which are."""
        metadata = self._metadata
        if metadata.mirror is None:
            return None
        return matching_stems(self._path, metadata.stem_column, metadata.mirror, metadata.as_is, self.kept)

    @cached_property
    def split_of(self) -> dict[str, str] | None:
        """Stem -> split, of the images that have one; None where the description names no column of them."""
        stem_column, column = self._metadata.stem_column, self._metadata.split_column
        if column is None:
            return None
        splits = {plain_stem(row[stem_column]): plain(row[column])
                  for row in read_rows(self._path, [stem_column, column]) if plain(row[column])}
        if odd := [stem for stem, split in splits.items() if split not in SPLITS]:
            raise InputError(f"{self._path}: {odd[0]} has {splits[odd[0]]!r} in the column {column!r}; write one of "
                             f"{', '.join(SPLITS)}, or nothing")
        return splits


def read_table(description: "DatasetDescription", folder: Path) -> ImageTable | None:
    """The table of images, where the description names one."""
    return None if description.metadata is None else ImageTable(description, folder)


class Source(ABC):
    """Ground truth as a data set asks for it. Made of the description and the folder of the data set."""

    table: ImageTable | None = None  # of all images, where there is one
    splits: dict[str, list[str]]  # the sorted stems of each of SPLITS
    shapes: Counter[str] | None = None  # of each label in the annotated images, where that is known
    left_out: Sequence[str] = ()  # what of the annotations isn't used, and why, for people

    @abstractmethod
    def mask(self, stem: str) -> np.ndarray:
        """bool, (C, H, W), at the size of the original image and not mirrored."""

    def content(self, stem: str) -> bytes:
        """What the mask is drawn from, without drawing it where that can be spared: with another mask other bytes."""
        mask = self.mask(stem)
        return np.packbits(mask[..., ::-1] if self.is_mirrored(stem) else mask).tobytes()

    def size(self, stem: str) -> tuple[int, int]:
        """(H, W) of the mask, without drawing it where that can be spared."""
        return self.mask(stem).shape[1:]

    def keeps(self, stem: str) -> bool:
        """Whether the table lets this image count; all do where there is no table."""
        return self.table is None or stem in self.table.kept

    def is_annotated(self, stem: str) -> bool:
        """Whether the image is in any split, even where it doesn't count."""
        return stem in self

    def is_mirrored(self, stem: str) -> bool:
        """Whether the image shows the mirror image of what was drawn on."""
        return self.table is not None and self.table.mirrored is not None and stem in self.table.mirrored

    def __contains__(self, stem: str) -> bool:
        """Whether the ground truth of the image is known."""
        return any(stem in stems for stems in self.splits.values())


class AnnotationFile(Table, frozen=True):
    """A CVAT file, or only those of its images whose `subset` is this one."""
    file: str
    subset: str | None = None
    in_project: bool = False  # the path is relative to the project's top level


class CvatMasks(Masks, frozen=True, tag="cvat"):
    """Masks drawn in CVAT, at the size of the original images: the files of each split, or all `files` where the table
    of images says the splits."""
    train: tuple[AnnotationFile, ...] = ()
    val: tuple[AnnotationFile, ...] = ()
    test: tuple[AnnotationFile, ...] = ()
    files: tuple[AnnotationFile, ...] = ()
    attribute: str | None = None  # the attribute of a shape that names its label; else CVAT's own label does
    mirror_stems_with: str | None = None  # the images of these stems are mirrored ones, the drawings are not
    unlabeled_ground_truth: tuple[AnnotationFile, ...] = ()  # known masks of unlabeled images, for measuring only
    without_shapes: Literal["unlabeled", "empty"] = "unlabeled"  # what an image without shapes is
    skip_shapes: tuple[Literal["points", "polyline", "skeleton", "cuboid", "box", "ellipse"], ...] = ()  # left out


class ShapeSource(Source):
    """Masks from drawn shapes. Images that the table of images doesn't keep (other projections) are left out."""

    def __init__(self, description: "DatasetDescription", folder: Path):
        """Reads all annotations.

        Raises:
            InputError: a file is missing or wrong, a split is empty, an image is in two splits.
        """
        self._description, self._folder = description, folder
        self.table = read_table(description, folder)
        self._images: dict[str, CvatImage] = {}
        self._annotated: set[str] = set()
        self._empty: list[str] = []
        self._dropped: list[str] = []
        self._unsplit: list[str] = []
        self._unused, self._skipped = Counter(), Counter()
        self.splits = self._split()
        self.shapes = Counter(shape.anatomy for image in self._images.values() for shape in image.shapes)
        self.left_out = self._describe_rest()
        for split, stems in self.splits.items():
            if not stems and description.has_splits:
                raise InputError(f"{folder}: no image is left in the {split} split of {description.name}; the subset "
                                 "in its annotations or the values in its table of images must match its description"
                                 + "".join(f"; left out: {text}" for text in self.left_out))

    @abstractmethod
    def _parse_all(self) -> list[tuple[Path, CvatImage]]:
        """All annotated images, each with its file."""

    def _split(self) -> dict[str, list[str]]:
        return split_stems(self._folder, self._read(self._parse_all()), self._description, self.table)

    def _read(self, images: Iterable[tuple[Path, CvatImage]]) -> list[str]:
        """Takes in images and gives the stems of those that count, sorted."""
        stems, split_of = [], self.table and self.table.split_of
        for path, image in images:
            self._unused += image.unused
            self._skipped += image.skipped
            if not image.shapes and self._description.masks.without_shapes == "unlabeled":
                self._empty.append(image.stem)
                continue
            if split_of is not None and image.stem not in split_of:
                self._unsplit.append(image.stem)
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
        if self._unsplit:
            texts.append(f"{len(self._unsplit)} annotated images without a split in the table of images "
                         f"({name_some(sorted(self._unsplit))})")
        if self._dropped:
            texts.append(f"{len(self._dropped)} annotated images that the table of images doesn't keep "
                         f"({name_some(sorted(self._dropped))})")
        if self._unused:
            hints = {name: suggest(name, [plain(label) for label in self._description.labels]) for name in self._unused}
            names = sorted(self._unused, key=lambda name: (not hints[name], -self._unused[name], name))
            counted = name_some([f"{name}{hints[name]} {self._unused[name]}" for name in names], 5)
            texts.append(f"{self._unused.total()} shapes of {len(names)} labels that the description lacks: {counted}")
        if self._skipped:
            why = "by `skip_shapes`" if isinstance(self._description.masks, CvatMasks) else "without an area"
            texts.append(f"{self._skipped.total()} shapes of these labels {why} ({', '.join(sorted(self._skipped))})")
        return texts

    @cached_property
    def _places(self) -> Places:
        return Places(find_images(self._description, self._folder).paths)

    def _place(self, image: CvatImage) -> CvatImage:
        """The image by the stem of its file, which may lie in other folders than the annotation says."""
        return replace(image, stem=self._places.find(image.stem) or image.stem)

    def is_annotated(self, stem: str) -> bool:
        return stem in self._annotated

    def __contains__(self, stem: str) -> bool:
        return stem in self._images

    def _image(self, stem: str) -> CvatImage:
        return self._images[stem]

    def size(self, stem: str) -> tuple[int, int]:
        """(H, W) that the annotation gives the image."""
        image = self._image(stem)
        return image.height, image.width

    def content(self, stem: str) -> bytes:
        image = self._image(stem)
        shapes = [(shape.anatomy, shape.content) for shape in image.shapes]
        return repr((image.width, image.height, self.is_mirrored(stem), shapes)).encode()

    def mask(self, stem: str) -> np.ndarray:
        return draw_masks(self._image(stem), self._description.labels)


class CvatSource(ShapeSource):
    """Masks from CVAT files."""

    def _split(self) -> dict[str, list[str]]:
        if self._description.masks.files:
            return super()._split()
        return {split: self._read(self._parse(getattr(self._description.masks, split))) for split in SPLITS}

    def _parse_all(self) -> list[tuple[Path, CvatImage]]:
        return self._parse(self._description.masks.files)

    def _parse(self, files: Sequence[AnnotationFile]) -> list[tuple[Path, CvatImage]]:
        images, masks = [], self._description.masks
        for file in files:
            path = ROOT / file.file if file.in_project else self._description.locate(self._folder, file.file)
            parsed = parse_cvat(path, masks.attribute, self._description.labels, masks.skip_shapes,
                                self._description.subfolders)
            images += [(path, self._place(image) if self._description.subfolders else image) for image in parsed
                       if file.subset in (None, image.subset)]
        return images

    @cached_property
    def _unlabeled_ground_truth(self) -> dict[str, CvatImage]:
        masks = self._description.masks
        return {image.stem: image for _, image in self._parse(masks.unlabeled_ground_truth)
                if image.shapes or masks.without_shapes == "empty"}

    def is_mirrored(self, stem: str) -> bool:
        """The table decides, else the stem."""
        if self.table is not None and self.table.mirrored is not None:
            return super().is_mirrored(stem)
        marker = self._description.masks.mirror_stems_with
        return marker is not None and marker in stem

    def __contains__(self, stem: str) -> bool:
        return stem in self._images or stem in self._unlabeled_ground_truth

    def _image(self, stem: str) -> CvatImage:
        return self._images[stem] if stem in self._images else self._unlabeled_ground_truth[stem]


class CocoMasks(Masks, frozen=True, tag="coco"):
    """Masks of JSON files in COCO's format (polygons, run lengths; boxes where there is nothing else).

    files                the JSON files
    train, val           as of `StoredMasks`
    without_shapes       what an image without shapes is: "unlabeled", or "empty": it shows none of the labels
    """
    files: tuple[str, ...]
    train: Count | None = None
    val: Count | None = None
    without_shapes: Literal["unlabeled", "empty"] = "unlabeled"


class CocoSource(ShapeSource):
    """Masks from COCO files."""

    def _parse_all(self) -> list[tuple[Path, CvatImage]]:
        paths = [self._description.locate(self._folder, file) for file in self._description.masks.files]
        return [(path, self._place(image)) for path in paths
                for image in parse_coco(path, self._description.labels, self._description.subfolders)]


class LabelmeMasks(Masks, frozen=True, tag="labelme"):
    """Masks of labelme's JSON files, one an image; the other keys as of `CocoMasks`."""
    folder: str
    train: Count | None = None
    val: Count | None = None
    without_shapes: Literal["unlabeled", "empty"] = "unlabeled"


class LabelmeSource(ShapeSource):
    """Masks from labelme's files."""

    def _parse_all(self) -> list[tuple[Path, CvatImage]]:
        description = self._description
        folder = description.locate(self._folder, description.masks.folder)
        return [(folder / name, self._place(parse_labelme(folder / name, name, description.labels)))
                for name in list_names(folder) if name.lower().endswith(".json")]


class StoredMasks(Masks, frozen=True, tag="mask_store"):
    """Masks in one HDF5 file (`utils.mask_store`), split by sorted stems: first `train`, then `val`, the rest test; or
    by the table of images, where that has a `split_column`."""
    file: str
    train: Count | None = None
    val: Count | None = None


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
        self.table = read_table(description, folder)
        self.splits = split_stems(self._path, sorted(self._names), description, self.table)

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
    train: Count | None = None
    val: Count | None = None
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
        self.table = read_table(description, folder)
        self.splits = split_stems(self._folder, list(self._paths), description, self.table)

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
    train: Count | None = None
    val: Count | None = None
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
        self.table = read_table(description, folder)
        self.splits = split_stems(folder, stems, description, self.table)

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


def split_stems(where: Path, stems: Sequence[str], description: "DatasetDescription", table: ImageTable | None
                ) -> dict[str, list[str]]:
    """The splits of sorted stems, by the table of images if that has a column for it, else as `split_by_counts`.

    Raises:
        InputError: a split is empty.
    """
    if not description.has_splits:
        return {"train": [], "val": [], "test": list(stems)}
    if table is None or table.split_of is None:
        return split_by_counts(where, stems, description)
    splits = {split: [stem for stem in stems if table.split_of.get(stem) == split and stem in table.kept]
              for split in SPLITS}
    if empty := [split for split, chosen in splits.items() if not chosen]:
        raise InputError(f"{where}: no annotated image has {empty[0]!r} in the column "
                         f"{description.metadata.split_column!r} of {description.metadata.file}; give one to each of "
                         f"{', '.join(SPLITS)}")
    return splits


def split_by_counts(where: Path, stems: Sequence[str], description: "DatasetDescription") -> dict[str, list[str]]:
    """The splits of sorted stems: first the training images, then validation, the rest test.

    Raises:
        InputError: none is left for test; the message says `where` the masks lie.
    """
    train, val = description.masks.train, description.masks.val
    if train is None or val is None:
        raise InputError(f"{where}: nothing says which images are for training; write `train = 40` and `val = 10` into "
                         "[masks] of the description, or name a table of images with a `split_column` in [metadata]")
    if len(stems) <= train + val:
        raise InputError(f"{where}: holds {len(stems)} masks, more than {train} + {val} are needed for training, "
                         f"validation and test; complete it with `{description.prepare}`")
    return {"train": list(stems[:train]), "val": list(stems[train:train + val]), "test": list(stems[train + val:])}


SOURCES: dict[type[Masks], type[Source]] = {
    CvatMasks: CvatSource, CocoMasks: CocoSource, LabelmeMasks: LabelmeSource, StoredMasks: StoredSource,
    LabelMaps: LabelMapSource, LabelFiles: LabelFileSource}
