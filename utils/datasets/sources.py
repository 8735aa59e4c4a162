"""Where the ground truth of a data set come from: drawn in CVAT, stored in one HDF5 file, or one label map per image.

All sources answer the same questions: the stems of each split, whether the ground truth of an image is known, its size,
its mask at the size of the original image, and whether the image is a mirrored one.
"""
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.datasets.cvat import CvatImage, draw_masks, parse_cvat
from utils.datasets.description import (
    SPLITS,
    AnnotationFile,
    CvatMasks,
    DatasetDescription,
    LabelMaps,
    StoredMasks,
)
from utils.errors import InputError
from utils.files import image_size, read_label_map
from utils.mask_store import MaskStore
from utils.paths import ROOT
from utils.tables import matching_stems


class CvatSource:
    """Masks from CVAT files. Images that the metadata table doesn't keep (other projections) are left out."""

    def __init__(self, description: DatasetDescription, folder: Path):
        """Reads all annotations, `folder` is the data set's.

        Raises:
            InputError: a file is missing or wrong, a split is empty, an image is in two splits.
        """
        self._description, self._folder = description, folder
        metadata, self._kept = description.metadata, None
        if metadata is not None:
            self._kept = matching_stems(folder / metadata.file, metadata.stem_column, metadata.keep)
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
            path = (ROOT if file.in_project else self._folder) / file.file
            parsed = parse_cvat(path, self._description.masks.attribute)
            images += [(path, image) for image in parsed if file.subset in (None, image.subset)]
        return images

    @cached_property
    def _unlabeled_ground_truth(self) -> dict[str, CvatImage]:
        return {image.stem: image for _, image in self._parse(self._description.masks.unlabeled_ground_truth)}

    @cached_property
    def _mirrored(self) -> frozenset[str] | None:
        metadata = self._description.metadata
        if metadata is None or metadata.mirror is None:
            return None
        return matching_stems(self._folder / metadata.file, metadata.stem_column, metadata.mirror)

    def keeps(self, stem: str) -> bool:
        """Whether the metadata table lets this image count; all do where there is no table."""
        return self._kept is None or stem in self._kept

    def is_annotated(self, stem: str) -> bool:
        """Whether the image is in any split, even where it doesn't count."""
        return stem in self._annotated

    def is_mirrored(self, stem: str) -> bool:
        """Whether the image shows the mirror image of what was drawn on: the table decides, else the stem."""
        if self._mirrored is not None:
            return stem in self._mirrored
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

    def mask(self, stem: str) -> np.ndarray:
        """bool, (C, H, W), as drawn, so not mirrored."""
        return draw_masks(self._image(stem), self._description.labels)


class _CountedSource:
    """Masks of images that are split by their sorted stems: first the training images, then validation, then test."""

    def __init__(self, where: Path, stems: Sequence[str], masks: StoredMasks | LabelMaps, prepare: str):
        """Raises InputError if there are too few for the splits; `where` the masks lie, `prepare` how to get them."""
        if len(stems) <= masks.train + masks.val:
            raise InputError(f"{where}: holds {len(stems)} masks, more than {masks.train} + {masks.val} are needed for "
                             f"training, validation and test; complete it with `{prepare}`")
        bounds = (0, masks.train, masks.train + masks.val, len(stems))
        self.splits = {split: list(stems[bounds[i]:bounds[i + 1]]) for i, split in enumerate(SPLITS)}
        self._stems = frozenset(stems)

    def keeps(self, stem: str) -> bool:
        return True

    def is_annotated(self, stem: str) -> bool:
        return stem in self._stems

    def is_mirrored(self, stem: str) -> bool:
        return False

    def __contains__(self, stem: str) -> bool:
        return stem in self._stems


class StoredSource(_CountedSource):
    """Masks from an HDF5 file (`utils.mask_store`)."""

    def __init__(self, description: DatasetDescription, folder: Path):
        """Raises InputError if the file is missing, wrong, or holds too few images for the splits."""
        path = folder / description.masks.file
        if not path.is_file():
            raise InputError(f"{path}: no such masks; make them with `{description.prepare}`")
        self._store = MaskStore(path, description.labels)
        super().__init__(path, self._store.stems, description.masks, description.prepare)

    def size(self, stem: str) -> tuple[int, int]:
        """(H, W) of the stored mask."""
        return self.mask(stem).shape[1:]

    def mask(self, stem: str) -> np.ndarray:
        """bool, (C, H, W), as stored."""
        return self._store.mask(stem)


class LabelMapSource(_CountedSource):
    """Masks from one grey PNG per image, whose value v stands for the v-th label, 0 for the background."""

    def __init__(self, description: DatasetDescription, folder: Path):
        """Raises InputError if the folder is missing or holds too few masks for the splits."""
        self._folder, self._labels = folder / description.masks.folder, description.labels
        if not self._folder.is_dir():
            raise InputError(f"{self._folder}: no such folder of masks; put them there with "
                             f"`{description.prepare}`")
        stems = sorted(path.stem for path in self._folder.glob("[!.]*.png"))
        super().__init__(self._folder, stems, description.masks, description.prepare)

    def size(self, stem: str) -> tuple[int, int]:
        """(H, W) from the mask's header."""
        return image_size(self._folder / f"{stem}.png")

    def mask(self, stem: str) -> np.ndarray:
        """bool, (C, H, W).

        Raises:
            InputError: the file isn't a readable image, or has a value beyond the last label.
        """
        path = self._folder / f"{stem}.png"
        values = read_label_map(path)
        if values.max() > len(self._labels):
            raise InputError(f"{path}: has the value {values.max()}, but there are {len(self._labels)} labels; use the "
                             "masks of index values (0 background, 1 the first label), not those made to be looked at")
        return values == np.arange(1, len(self._labels) + 1)[:, None, None]


SOURCES = {CvatMasks: CvatSource, StoredMasks: StoredSource, LabelMaps: LabelMapSource}
