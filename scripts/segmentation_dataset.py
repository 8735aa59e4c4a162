"""The data sets as the stages see them: which images belong to what, their masks, and views for PyTorch.

    data = open_dataset("phantom", Path("data"))
    train = LabelledDataset(data, data.stems("train", 5))
    image, mask = train[0]    # float32 (1, H, W), bool (C, H, W)
"""
import copy
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler, TensorDataset
from tqdm import tqdm

from scripts.annotation_sources import SOURCES
from scripts.csv_tables import read_column
from scripts.dataset_description import SPLITS, DatasetDescription, StemList, load_description
from utils.cli import InputError
from utils.files import image_size, read_grey
from utils.mask_store import MaskStore

UNLABELLED_SAMPLE = 500
SMALLEST_INPUT = 32  # pixels, which a U-Net halves four times
MOST_KEPT_IMAGES = 1000  # pseudo-labelled images of up to about 0.6 MB each that are kept after they were decoded once


class AnnotatedImages:
    """Images, splits and true masks of one data set. Made by `open_dataset`."""

    def __init__(self, description: DatasetDescription, folder: Path):
        """Reads the annotations in `folder`. Raises InputError if they are missing or wrong."""
        self.description, self.folder = description, folder
        self._checked: set[str] = set()  # stems whose image is there and of the annotated size
        self._source = SOURCES[type(description.masks)](description, folder)

    def image_path(self, stem: str) -> Path:
        """Where the image of a stem lies."""
        return self.folder / self.description.image_folder / (stem + self.description.image_suffix)

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
        ordered = self._listed(self.description.training_order, "the training images are taken in sorted order")
        if ordered is None:
            return stems
        if sorted(ordered) != stems:
            odd = sorted(set(ordered) ^ set(stems)) or ["a stem listed twice"]
            raise InputError(f"{self.folder / self.description.training_order.file}: must list each training image "
                             f"once, differs in {odd[0]}; get list and annotations of the same version")
        return ordered

    def _listed(self, stem_list: StemList | None, otherwise: str) -> list[str] | None:
        """The stems of a list; None where there is none, which is said if the description names one."""
        if stem_list is None:
            return None
        path = self.folder / stem_list.file
        if path.is_file():
            return read_column(path, stem_list.column)
        print(f"{path} is not there: {otherwise}", file=sys.stderr)
        return None

    def unlabelled_stems(self, num_train_samples: int, split500: bool, seed: int) -> list[str]:
        """The stems of the unlabelled images when the first `num_train_samples` training images are the labelled ones.

        With `split500` the data set's fixed sample of them; where there is no such list, 500 drawn by `seed` (all,
        if there are no more). Sorted, but for the fixed sample, which keeps its order.

        Raises:
            InputError: there is none, or the list names an image that isn't there or is annotated.
        """
        if self.description.unlabelled == "rest_of_train":
            candidates = sorted(set(self.stems("train")) - set(self.stems("train", num_train_samples)))
        else:
            folder = self.folder / self.description.image_folder
            candidates = sorted(path.stem for path in folder.glob("[!.]*" + self.description.image_suffix)
                                if self._source.keeps(path.stem) and not self._source.is_annotated(path.stem))
        if not candidates:
            raise InputError(f"{self.folder}: no unlabelled images with {num_train_samples} labelled ones; take fewer "
                             f"labelled ones, or put more images in place with `{self.description.prepare}`")
        return self._sample(candidates, seed) if split500 else candidates

    def _sample(self, candidates: list[str], seed: int) -> list[str]:
        stem_list = self.description.unlabelled_sample
        listed = self._listed(stem_list, f"a sample of {UNLABELLED_SAMPLE} unlabelled images is drawn by the seed")
        if listed is not None:
            if not listed or len(set(listed)) < len(listed):
                raise InputError(f"{self.folder / stem_list.file}: must list images, each once")
            if absent := sorted(set(listed) - set(candidates)):
                raise InputError(f"{self.folder / stem_list.file}: lists {absent[0]}, which is not among the "
                                 f"unlabelled images in {self.folder / self.description.image_folder} "
                                 f"({len(absent)} like it); put them there with `{self.description.prepare}` or use "
                                 "all that are there")
            return listed
        if len(candidates) <= UNLABELLED_SAMPLE:
            return candidates
        if stem_list is None:
            print(f"{UNLABELLED_SAMPLE} of {len(candidates)} unlabelled images are drawn by the seed", file=sys.stderr)
        chosen = np.random.default_rng(seed).choice(len(candidates), UNLABELLED_SAMPLE, replace=False)
        return [candidates[index] for index in sorted(chosen)]

    def has_truth(self, stem: str) -> bool:
        """Whether the true mask of an image is known, also of unlabelled ones."""
        return stem in self._source

    def mask(self, stem: str) -> np.ndarray:
        """The true mask at the network's input size, bool, (C, H, W), mirrored where the image is.

        Raises:
            InputError: it isn't known, the image is missing, or its size isn't the mask's.
        """
        if not self.has_truth(stem):
            raise InputError(f"{stem}: its true mask is not known in {self.description.name}; it is not annotated")
        original = self._source.mask(stem)
        self._check_size(stem, original.shape[1:])
        masks = resize_masks(original, self.description.input_size)
        # mirrored last: nearest resizing isn't symmetric, and the positive weights are those of the drawn masks
        return np.ascontiguousarray(masks[..., ::-1]) if self._source.is_mirrored(stem) else masks

    def _check_size(self, stem: str, annotated: tuple[int, int]) -> None:
        path = self.image_path(stem)
        if not path.is_file():
            raise InputError(f"{path}: no such image, but {stem} is annotated; put it there with "
                             f"`{self.description.prepare}`")
        size = image_size(path)
        if size != tuple(annotated):
            raise InputError(f"{path}: the image is {size[1]} x {size[0]} pixels, its annotation says {annotated[1]} x "
                             f"{annotated[0]}; use the image that was annotated (`{self.description.prepare}`)")


def open_dataset(name: str, data_dir: Path, input_size: Sequence[int] | None = None,
                 measured: bool = True) -> AnnotatedImages:
    """Opens `data_dir/name`. `input_size` (H, W) replaces the description's; without `measured` it may lack what
    scripts.measure_dataset measures.

    Raises:
        InputError: no such data set, or its annotations are missing or wrong.
    """
    description = load_description(name, data_dir, measured)
    if input_size is not None:
        description = dataclasses.replace(description, input_size=tuple(input_size))
    if min(description.input_size) < SMALLEST_INPUT:
        raise InputError(f"input size {tuple(description.input_size)} (H, W): the U-Net needs {SMALLEST_INPUT} pixels "
                         "and more in height and width")
    return AnnotatedImages(description, data_dir / name)


def load_image(path: Path, description: DatasetDescription) -> np.ndarray:
    """Reads a radiograph as network input: grey, resized bilinearly, scaled to [0, 1], minus mean, over std.

    Returns:
        float32, (1, H, W) of the description's input size
    Raises:
        InputError: the image is missing or unreadable.
    """
    scaled = read_scaled(path, description)
    return ((scaled - description.mean) / description.std).astype(np.float32)[None]


def read_scaled(path: Path, description: DatasetDescription) -> np.ndarray:
    """Reads a radiograph as float32 in [0, 1], resized bilinearly to the input size; errors as of `load_image`."""
    grey = read_grey(path, description.white)
    height, width = description.input_size
    return cv2.resize(grey.astype(np.float32) / np.iinfo(grey.dtype).max, (width, height),
                      interpolation=cv2.INTER_LINEAR)


def resize_masks(masks: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Masks, bool, (C, H, W), at another size (H, W), by OpenCV's nearest neighbour."""
    height, width = size
    return np.stack([cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
                     for mask in masks])


class LabelledDataset(Dataset):
    """Images with their true masks: float32 (1, H, W) and bool (C, H, W). All are decoded at once and kept."""

    def __init__(self, data: AnnotatedImages, stems: Sequence[str]):
        """Raises InputError for an image or a mask that is missing or wrong."""
        self.stems = list(stems)
        self._pairs = [(torch.from_numpy(load_image(data.image_path(stem), data.description)),
                        torch.from_numpy(data.mask(stem)))
                       for stem in tqdm(self.stems, desc="labelled images", unit="image", leave=False)]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._pairs[index]


def resident_batches(labelled: LabelledDataset, batch_size: int, device: torch.device,
                     sampler: Sampler[int] | None = None) -> DataLoader:
    """Batches of images (B, 1, H, W) and masks (B, C, H, W), cut from tensors that lie on the device from now on.

    Their order, also after random numbers, is that of `DataLoader(labelled, batch_size, sampler=sampler)`.
    """
    everything = TensorDataset(*(torch.stack(each).to(device) for each in zip(*labelled, strict=True)))
    order = BatchSampler(sampler or SequentialSampler(labelled), batch_size, drop_last=False)
    return DataLoader(everything, batch_size=None, sampler=order)


class EpochLoader(DataLoader):
    """A `DataLoader` for training over many epochs, which takes as many random numbers whatever the number of workers.

    One with persistent workers draws their seed in its first epoch alone: a training that goes on after an interruption
    would end elsewhere than one that wasn't interrupted.
    """

    def __iter__(self) -> Iterator:
        if self.persistent_workers and self._iterator is not None:
            torch.empty((), dtype=torch.int64).random_()  # as a new iterator does
        return super().__iter__()


class PseudoLabelDataset(Dataset):
    """Images with saved masks: float32 (1, H, W) and bool (C, H, W).

    Each process reads through a handle of its own. Of up to `MOST_KEPT_IMAGES` images each is decoded once and kept,
    its mask as bits; of more none is kept, so that memory stays bounded.
    """

    def __init__(self, data: AnnotatedImages, stems: Sequence[str], masks: MaskStore):
        """Raises InputError if masks are missing or were saved at another size than the data set's input size."""
        self.data, self.stems = data, list(stems)
        if absent := [stem for stem in self.stems if stem not in masks]:
            raise InputError(f"{masks.path}: holds no mask of {absent[0]} ({len(absent)} of {len(self.stems)} are "
                             "missing); run the stage that wrote it again")
        for stem in self.stems[:1]:  # through a copy: an open file must not be carried into worker processes
            size = copy.copy(masks).mask(stem).shape[1:]
            if size != data.description.input_size:
                raise InputError(f"{masks.path}: its masks are of size {size} (H, W), not the input size "
                                 f"{data.description.input_size}; save them with this input size")
        self._masks = copy.copy(masks)
        self._kept: dict[str, tuple[torch.Tensor, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        stem = self.stems[index]
        image, bits = self._kept.get(stem) or self._decode(stem)
        mask = np.unpackbits(bits, axis=-1, count=image.shape[-1]).view(bool)
        return image, torch.from_numpy(mask)

    def _decode(self, stem: str) -> tuple[torch.Tensor, np.ndarray]:
        image = torch.from_numpy(load_image(self.data.image_path(stem), self.data.description))
        pair = image, np.packbits(self._masks.mask(stem), axis=-1)
        if len(self.stems) <= MOST_KEPT_IMAGES:
            self._kept[stem] = pair
        return pair


class ImageDataset(Dataset):
    """Images alone, for prediction: float32 (1, H, W) and the stem."""

    def __init__(self, data: AnnotatedImages, stems: Sequence[str]):
        self.data, self.stems = data, list(stems)

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        stem = self.stems[index]
        return torch.from_numpy(load_image(self.data.image_path(stem), self.data.description)), stem


class PartlyLabelledDataset(Dataset):
    """Labelled images, then unlabelled ones: float32 (1, H, W), bool (C, H, W), and whether that mask counts.

    Of up to `MOST_KEPT_IMAGES` unlabelled images each is decoded once and kept.
    """

    def __init__(self, labelled: LabelledDataset, unlabelled: ImageDataset):
        self.labelled, self.unlabelled = labelled, unlabelled
        self._kept: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, bool]:
        if index < len(self.labelled):
            return *self.labelled[index], True
        image = self._image(index - len(self.labelled))
        return image, torch.zeros_like(self.labelled[0][1]), False

    def _image(self, index: int) -> torch.Tensor:
        if index in self._kept:
            return self._kept[index]
        image, _ = self.unlabelled[index]
        if len(self.unlabelled) <= MOST_KEPT_IMAGES:
            self._kept[index] = image
        return image


class HalfAndHalf(Sampler[list[int]]):
    """Batches for a `ConcatDataset` of labelled and pseudo-labelled images.

    Half of each batch is drawn from the labelled ones with replacement, the other half passes once over the others in
    random order; whole batches only.
    """

    def __init__(self, labelled: int, pseudo_labelled: int, batch_size: int):
        """Numbers of images. A batch of an odd size has one pseudo-labelled image more."""
        self.labelled, self.pseudo_labelled = labelled, pseudo_labelled
        self.share = batch_size // 2
        self.rest = batch_size - self.share

    def __len__(self) -> int:
        return self.pseudo_labelled // self.rest

    def __iter__(self) -> Iterator[list[int]]:
        order = self.labelled + torch.randperm(self.pseudo_labelled)
        for batch in order[:len(self) * self.rest].view(-1, self.rest):
            yield [*torch.randint(self.labelled, (self.share,)).tolist(), *batch.tolist()]
