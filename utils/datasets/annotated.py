"""The data sets as the stages see them: which images belong to what, and their ground truth.

    data = open_dataset("phantom", Path("data"))
    stems = data.stems("train", 5)
    mask = data.mask(stems[0])    # bool (C, H, W)
"""
import copy
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from msgspec.structs import replace

from utils.datasets.description import DatasetDescription, StemList, load_description
from utils.datasets.image_files import any_of_16_bits, find_images
from utils.datasets.sources import SOURCES, SPLITS
from utils.digests import READERS, digest_files
from utils.errors import InputError, say_once
from utils.files import image_size, read_grey
from utils.left_out import leave_out
from utils.locks import exclusive
from utils.names import name_some
from utils.overlap import map_threaded
from utils.records import find_record, write_record
from utils.tables import matching_stems, read_stems

UNLABELED_SAMPLE = 500
MOST_KEPT_MASKS = 256
FARTHEST_MEAN = 3  # standard deviations
SMALLEST_INPUT = 32  # pixels, which a U-Net halves four times


class AnnotatedImages:
    """Images, splits and ground truth of one data set. Made by `open_dataset`."""

    def __init__(self, description: DatasetDescription, folder: Path):
        """Reads the annotations in `folder`. Raises InputError if they are missing or wrong."""
        self.folder = folder
        self.derived_dir = folder.parent  # of what stages make of the images, which may lie elsewhere
        self._image_folder = description.locate(folder, description.image_folder)
        self._images = find_images(description, folder)
        description = _settle_grey_range(description, self._images.paths.values(), self._image_folder)
        self.description = description
        self._checked: set[str] = set()  # stems whose image is there and of the annotated size
        self._drawn: dict[tuple, np.ndarray] = {}  # masks as bits: drawing one can take a tenth of a second
        self._source = SOURCES[type(description.masks)](description, folder)
        say_once(f"{description.name}: {self.describe()}", key=f"{folder}: {self.describe()}")

    def describe(self) -> str:
        """What was read of the data set, and what was not, in one line."""
        description, source = self.description, self._source
        counts = ", ".join(f"{len(source.splits[split])} {name}" for split, name in
                           zip(SPLITS, ("training", "validation", "test images"), strict=True))
        if description.unlabeled == "not_annotated":
            others = [stem for stem in self._images.paths if source.keeps(stem) and not source.is_annotated(stem)]
            counts += f", {len(others)} not annotated"
        labels = f"{len(description.labels)} labels"
        if source.shapes is not None:
            shapes = [(source.shapes[label], label) for label in description.labels]
            (fewest, rare), (most, frequent) = min(shapes), max(shapes)
            labels += f" in {source.shapes.total()} shapes (from {fewest} of {rare} to {most} of {frequent})"
        rest = [*source.left_out, *self._images.describe("images")]
        if dropped := [stem for stem in self._images.paths if not (source.keeps(stem) or source.is_annotated(stem))]:
            rest.append(f"{len(dropped)} images that the table of images doesn't keep ({name_some(dropped)})")
        return f"{counts}; {labels}" + "".join(f"; left out: {text}" for text in rest)

    @property
    def shapes(self) -> Mapping[str, int] | None:
        """How many shapes of each label the annotated images have; None where that isn't known."""
        return self._source.shapes

    def with_input(self, input_size: Sequence[int], mean: float, std: float) -> "AnnotatedImages":
        """The same data set for a network of another input size (H, W) and normalization."""
        changed = copy.copy(self)
        changed.description = replace(self.description, input_size=tuple(input_size), mean=mean, std=std)
        return changed

    @property
    def data_dir(self) -> Path:
        """The folder of all data sets."""
        return self.folder.parent

    def digests(self, stems: Iterable[str]) -> dict[str, str]:
        """Stem -> SHA-256 of its image file."""
        stems = list(stems)
        index = self.derived_dir / self.description.name / "digests.json"
        return dict(zip(stems, digest_files([self.image_path(stem) for stem in stems], index), strict=True))

    def readable(self, stems: Sequence[str]) -> list[str]:
        """Those whose image can be read; a run goes on without the others (`utils.left_out`). Each is tried once."""
        folder = self.derived_dir / self.description.name
        accessible, reasons = [], {}
        for stem in stems:
            try:
                self.image_path(stem).open("rb").close()
                accessible.append(stem)
            except OSError as error:
                reasons[stem] = f"{self.image_path(stem)}: {error.strerror}"
        origins, record = self.origins(accessible), folder / "readable.json"
        known = _read_readable(record)
        untried = [stem for stem in accessible if origins[stem] not in known]
        tried = zip(untried, map_threaded(self._try_reading, untried, READERS), strict=True)
        reasons |= {stem: reason for stem, reason in tried if reason}
        if new := {origins[stem] for stem in untried if stem not in reasons}:
            with suppress(OSError), exclusive(record):
                write_record(record, {"origins": sorted(_read_readable(record) | new)})
        leave_out(reasons, folder)
        return [stem for stem in stems if stem not in reasons]

    def _try_reading(self, stem: str) -> str:
        """What is wrong with an image; "" if nothing is."""
        try:
            read_grey(self.image_path(stem), self.description.grey)
        except (InputError, OSError) as error:
            return str(error)
        return ""

    def origins(self, stems: Iterable[str]) -> dict[str, str]:
        """Stem -> what the network's input is made of: as `digests`, with how the file is read."""
        return {stem: f"{digest} {self.description.reading}" for stem, digest in self.digests(stems).items()}

    def image_path(self, stem: str) -> Path:
        """Where the image of a stem lies."""
        description = self.description
        usual = self._image_folder / (stem + description.image_ending + description.image_suffixes[0])
        return usual if usual.is_file() else self._images.paths.get(stem, usual)

    def read_grey(self, stem: str) -> np.ndarray:
        """The image of a stem as SAM sees it, uint8 or uint16, (H, W). Raises InputError as `utils.files.read_grey`."""
        return read_grey(self.image_path(stem), self.description.grey)

    def stems(self, split: str, num: int | None = None) -> list[str]:
        """The stems of "train" (in training order), "val" or "test"; with `num`, the first so many of them.

        Raises:
            InputError: there are fewer, an image is missing, or its size isn't the annotated one.
        """
        if split not in SPLITS:
            raise InputError(f"there is no split {split!r}; known are {', '.join(SPLITS)}")
        stems = self._training_order() if split == "train" else self._source.splits[split]
        if num is not None and not 1 <= num <= len(stems):
            raise InputError(f"{num} images of the {split} split are asked for; {self.description.name} has "
                             f"{len(stems)}, take 1 to {len(stems)}")
        for stem in sorted(set(stems) - self._checked):
            self._check_size(stem, self._source.size(stem))
            self._checked.add(stem)
        return stems[:num]

    def _training_order(self) -> list[str]:
        stems = self._source.splits["train"]
        ordered = self._read_list(self.description.training_order, "the training images are taken in sorted order")
        if ordered is None:
            return stems
        if sorted(ordered) != stems:
            odd = sorted(set(ordered) ^ set(stems)) or ["a stem listed twice"]
            path = self.description.locate(self.folder, self.description.training_order.file)
            raise InputError(f"{path}: must list each training image once, differs in {odd[0]}; get list and "
                             "annotations of the same version")
        return ordered

    def _read_list(self, stem_list: StemList | None, otherwise: str) -> list[str] | None:
        """The stems of a list; None where there is none, which is said if the description names one."""
        if stem_list is None:
            return None
        path = self.description.locate(self.folder, stem_list.file)
        if path.is_file():
            return read_stems(path, stem_list.column)
        print(f"{path} is not there: {otherwise}", file=sys.stderr)
        return None

    def unlabeled_stems(self, num_train_samples: int, split500: bool, seed: int) -> list[str]:
        """The stems of the images for pseudo labels when the first `num_train_samples` training images are labeled.

        With `split500` the data set's fixed sample of them; where there is no such list, 500 drawn by `seed` (all,
        if there are no more). Sorted, but for the fixed sample, which keeps its order. Where the description says
        `unlabeled = "all_of_train"` the labeled images are among them.

        Raises:
            InputError: there is none, or the list names an image that isn't there or is annotated.
        """
        if self.description.unlabeled == "not_annotated":
            candidates = self._present_stems(include_annotated=False)
        elif self.description.unlabeled == "all_of_train":
            candidates = sorted(self.stems("train"))
        else:
            candidates = sorted(set(self.stems("train")) - set(self.stems("train", num_train_samples)))
        if not candidates:
            raise InputError(f"{self.folder}: no unlabeled images with {num_train_samples} labeled ones; take fewer "
                             f"labeled ones, or put more images in place with `{self.description.prepare}`")
        return self._sample(candidates, seed) if split500 else candidates

    def select(self, include_annotated: bool = False, where: Mapping[str, str] | None = None) -> list[str]:
        """Sorted stems of the images that are there and count, whatever a training takes of them.

        Args:
            include_annotated: those of the training, validation and test split too
            where: only images whose row in the data set's table has these values, column -> value ("": an empty cell)
        Raises:
            InputError: there is none, or no table with these columns.
        """
        stems = self._present_stems(include_annotated)
        if where:
            metadata = self.description.metadata
            if metadata is None:
                raise InputError(f"{self.description.name} has no table of its images, so none can be chosen by "
                                 f"{', '.join(where)}; describe one in its [metadata]")
            table = self.description.locate(self.folder, metadata.file)
            matching = matching_stems(table, metadata.stem_column, where)
            stems = [stem for stem in stems if stem in matching]
        if not stems:
            raise InputError(f"{self._image_folder}: none of its images is chosen; ask for other values, for annotated "
                             f"images too, or put more images in place with `{self.description.prepare}`")
        return stems

    def _present_stems(self, include_annotated: bool) -> list[str]:
        """Sorted stems of the images in the folder that count."""
        self._images = find_images(self.description, self.folder)
        stems = [stem for stem in self._images.paths if self._source.keeps(stem)]
        return stems if include_annotated else [stem for stem in stems if not self._source.is_annotated(stem)]

    def _sample(self, candidates: list[str], seed: int) -> list[str]:
        stem_list = self.description.unlabeled_sample
        listed = self._read_list(stem_list, f"a sample of {UNLABELED_SAMPLE} unlabeled images is drawn by the seed")
        if listed is not None:
            path = self.description.locate(self.folder, stem_list.file)
            if not listed or len(set(listed)) < len(listed):
                raise InputError(f"{path}: must list images, each once")
            if absent := sorted(set(listed) - set(candidates)):
                raise InputError(f"{path}: lists {absent[0]}, which is not among the unlabeled images in "
                                 f"{self._image_folder} ({len(absent)} like it); put them there with "
                                 f"`{self.description.prepare}` or use all that are there")
            return listed
        if len(candidates) <= UNLABELED_SAMPLE:
            return candidates
        if stem_list is None:
            print(f"{UNLABELED_SAMPLE} of {len(candidates)} unlabeled images are drawn by the seed", file=sys.stderr)
        chosen = np.random.default_rng(seed).choice(len(candidates), UNLABELED_SAMPLE, replace=False)
        return [candidates[index] for index in sorted(chosen)]

    def has_ground_truth(self, stem: str) -> bool:
        """Whether the ground truth of an image is known, also of unlabeled ones."""
        return stem in self._source

    def is_mirrored(self, stem: str) -> bool:
        """Whether the image is the mirror image of the one that is annotated."""
        return self._source.is_mirrored(stem)

    def content(self, stem: str) -> bytes:
        """Stands for the ground truth of an image at any size: with another one it is other bytes."""
        return self._source.content(stem)

    def mask(self, stem: str) -> np.ndarray:
        """The ground truth at the network's input size, bool, (C, H, W), mirrored where the image is.

        Raises:
            InputError: it isn't known, the image is missing, or its size isn't the mask's.
        """
        key, width = (stem, *self.description.input_size), self.description.input_size[1]
        if key not in self._drawn:
            mask = self._draw(stem)
            if len(self._drawn) == MOST_KEPT_MASKS:
                return mask
            self._drawn[key] = np.packbits(mask, axis=-1)
        return np.unpackbits(self._drawn[key], axis=-1, count=width).view(bool)

    def _draw(self, stem: str) -> np.ndarray:
        if not self.has_ground_truth(stem):
            raise InputError(f"{stem}: its ground truth is not known in {self.description.name}; it is not annotated")
        original = self._source.mask(stem)
        height, width = self._check_size(stem, original.shape[1:])
        masks = resize_masks(original[:, :height, :width], self.description.input_size)
        # mirrored last: nearest resizing isn't symmetric, and pos_weight is that of the drawn masks
        return np.ascontiguousarray(masks[..., ::-1]) if self._source.is_mirrored(stem) else masks

    def _check_size(self, stem: str, annotated: tuple[int, int]) -> tuple[int, int]:
        """The size (H, W) of the image, which annotations may exceed by a row or column, as some tools round."""
        path = self.image_path(stem)
        if not path.is_file():
            raise InputError(f"{path}: no such image, but {stem} is annotated; put it there with "
                             f"`{self.description.prepare}`")
        size = image_size(path)
        if not all(0 <= drawn - shown <= 1 for drawn, shown in zip(annotated, size, strict=True)):
            raise InputError(f"{path}: the image is {size[1]} x {size[0]} pixels, its annotation says {annotated[1]} x "
                             f"{annotated[0]}; use the image that was annotated (`{self.description.prepare}`)")
        return size


def _settle_grey_range(description: DatasetDescription, images: Iterable[Path], folder: Path) -> DatasetDescription:
    """With the `grey_range` that is meant where the description names none: an image of 16 bits may hold fewer."""
    if description.grey_range or description.max_grey_value or not folder.is_dir():
        return description
    found = any_of_16_bits(tuple(images), folder.stat().st_mtime_ns)
    return replace(description, grey_range="bits") if found else description


def open_dataset(name: str, data_dir: Path, input_size: Sequence[int] | None = None,
                 measured: bool = True) -> AnnotatedImages:
    """Opens `data_dir/name`. `input_size` (H, W) replaces the description's; without `measured` it may lack what
    scripts.measure_dataset measures.

    Raises:
        InputError: no such data set, or its annotations are missing or wrong.
    """
    description = load_description(name, data_dir, measured)
    if input_size is not None:
        description = replace(description, input_size=tuple(input_size))
    if min(description.input_size) < SMALLEST_INPUT:
        raise InputError(f"input size {tuple(description.input_size)} (H, W): the U-Net needs {SMALLEST_INPUT} pixels "
                         "and more in height and width")
    return AnnotatedImages(description, data_dir / name)


def _read_readable(record: Path) -> set[str]:
    """Origins of images that could be read; where there is no record all are tried."""
    return set((find_record(record, dict[str, list[str]]) or {}).get("origins", ()))


def load_image(path: Path, description: DatasetDescription) -> np.ndarray:
    """Reads a radiograph as network input: grey, resized bilinearly, scaled to [0, 1], minus mean, over std.

    Returns:
        float32, (1, H, W) of the description's input size
    Raises:
        InputError: the image is missing or unreadable.
    """
    return normalize(read_scaled(path, description), description, path)


def normalize(scaled: np.ndarray, description: DatasetDescription, what: object = "image") -> np.ndarray:
    """A radiograph as of `read_scaled`, minus mean, over std, float32, (1, H, W). Says where its mean is far from that
    of the training images; `what` names it then."""
    if (distance := abs(scaled.mean() - description.mean) / description.std) > FARTHEST_MEAN:
        say_once(f"{what}: its mean as the network gets it is {distance:.1f} standard deviations from that of the "
                 "training images; `mean`, `std`, `max_grey_value`, `grey_range` or `invert` of the description may be "
                 "those of other images (scripts.measure_dataset prints what they should be)", kind="mean")
    return ((scaled - description.mean) / description.std).astype(np.float32)[None]


def read_scaled(path: Path, description: DatasetDescription) -> np.ndarray:
    """Reads a radiograph as the network sees it, before its normalization.

    Returns:
        float32, (H, W) of the description's input size, in [0, 1]; resized bilinearly, in whole numbers of 8 or 16 bits
        or in fractions of them as `resize_dtype` says
    Raises:
        InputError: the image is missing or unreadable.
    """
    return scale(read_grey(path, description.grey), description)


def scale(grey: np.ndarray, description: DatasetDescription) -> np.ndarray:
    """Grey values as of `utils.files.read_grey`, uint8 or uint16, as `read_scaled` gives them."""
    largest, (height, width) = np.iinfo(grey.dtype).max, description.input_size
    if description.resize_dtype == "float32":
        return cv2.resize(grey.astype(np.float32) / largest, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32) / largest


def resize_masks(masks: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Masks, bool, (C, H, W), at another size (H, W), by OpenCV's nearest neighbor."""
    height, width = size
    return np.stack([cv2.resize(np.ascontiguousarray(mask).view(np.uint8), (width, height),
                                interpolation=cv2.INTER_NEAREST) > 0 for mask in masks])
