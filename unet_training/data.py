"""Views of a data set for PyTorch.

    data = open_dataset("phantom", Path("data"))
    train = LabeledDataset(data, data.stems("train", 5))
    image, mask = train[0]    # float32 (1, H, W), bool (C, H, W)
"""
import copy
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)
from tqdm import tqdm

from unet_training.distributed import share_batches
from utils.datasets.annotated import AnnotatedImages, load_image, open_dataset
from utils.errors import InputError
from utils.mask_store import MaskStore
from utils.paths import DATA
from utils.ranks import processes

MOST_KEPT_IMAGES = 1000  # pseudo-labeled images of up to about 0.6 MB each that are kept after they were decoded once


class LabeledDataset(Dataset):
    """Images with their ground truth: float32 (1, H, W) and bool (C, H, W). All are decoded at once and kept."""

    def __init__(self, data: AnnotatedImages, stems: Sequence[str]):
        """Raises InputError for an image or a mask that is missing or wrong."""
        self.stems = list(stems)
        pairs = [(torch.from_numpy(load_image(data.image_path(stem), data.description)),
                  torch.from_numpy(data.mask(stem)))
                 for stem in tqdm(self.stems, desc="labeled images", unit="image", leave=False)]
        self._images, self._masks = map(torch.stack, zip(*pairs, strict=True))  # workers get a file for each tensor

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._images[index], self._masks[index]


def resident_batches(labeled: LabeledDataset, batch_size: int, device: torch.device,
                     sampler: Sampler[int] | None = None) -> DataLoader:
    """Batches of images (B, 1, H, W) and masks (B, C, H, W), cut from tensors that lie on the device from now on.

    Their order, also after random numbers, is that of `DataLoader(labeled, batch_size, sampler=sampler)`.
    """
    everything = TensorDataset(*(torch.stack(each).to(device) for each in zip(*labeled, strict=True)))
    order = BatchSampler(sampler or SequentialSampler(labeled), batch_size, drop_last=False)
    if sampler:  # validation's batches stay whole
        order = share_batches(order)
    return DataLoader(everything, batch_size=None, sampler=order)


class SegGrazPedWriDataset(LabeledDataset):
    """Frontal radiographs of one split of GRAZPEDWRI-DX, right hands mirrored, with one mask per bone (bones overlap).

        train = SegGrazPedWriDataset("train", num_train_samples=5)
        image, mask = train[0]    # float32 (1, 384, 224) normalized, bool (17, 384, 224)

    The phantoms have the same form: `SegGrazPedWriDataset("train", dataset="phantom")`.
    """

    def __init__(self, split: str, num_train_samples: int | None = None, data_dir: Path = DATA,
                 dataset: str = "graz", input_size: Sequence[int] | None = None):
        """The first `num_train_samples` training images, or all of "train", "val" or "test".

        Raises:
            InputError: images or annotations are missing or wrong, or there are fewer images.
        """
        data = open_dataset(dataset, data_dir, input_size)
        super().__init__(data, data.stems(split, num_train_samples if split == "train" else None))
        self.labels = data.description.labels


class EpochLoader(DataLoader):
    """A `DataLoader` for training over many epochs, which takes as many random numbers whatever the number of workers.

    One with persistent workers draws their seed in its first epoch alone: a training that resumes after an interruption
    would end elsewhere than one that wasn't interrupted. A batch sampler draws batch by batch, between the numbers of
    the augmentation: workers, which read ahead, would change their order, so that there are none.

    Workers are no forks of the training's process. The tracker's threads run there, and a fork would keep what these
    have open: it makes them wait for ever.
    """

    def __init__(self, images: Dataset, batch_size: int = 1, num_workers: int = 0,
                 batch_sampler: Sampler[list[int]] | None = None, **options: Any):
        """The arguments are those of `DataLoader`. Several processes share batches that are shuffled and whole."""
        workers = 0 if batch_sampler else num_workers
        if workers < num_workers:
            print("--num_workers: these batches are drawn one by one, so no other process reads images ahead")
        if processes() > 1:
            shuffled = BatchSampler(RandomSampler(images), batch_size, drop_last=True)
            batch_size, batch_sampler = 1, share_batches(batch_sampler or shuffled)
            options = {**options, "shuffle": None, "drop_last": False}
        super().__init__(images, batch_size, batch_sampler=batch_sampler, num_workers=workers, **{
            **options, "persistent_workers": workers > 0, "worker_init_fn": _leave_interrupts,
            "multiprocessing_context": _worker_context() if workers else None})

    def __iter__(self) -> Iterator:
        if self.persistent_workers and self._iterator is not None:
            torch.empty((), dtype=torch.int64).random_()  # as a new iterator does
        try:
            yield from super().__iter__()
        except (InputError, OSError) as error:  # of a worker: with its traceback in the message
            if self.num_workers == 0:
                raise
            raise type(error)(str(error).strip().splitlines()[-1].removeprefix("utils.errors.InputError: ")) from None

    def close(self) -> None:
        """Ends the workers."""
        if self._iterator is not None:
            self._iterator._shutdown_workers()
            self._iterator = None


def _worker_context() -> BaseContext:
    """How worker processes are started."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")  # a process without threads, whose forks the workers are
    context.set_forkserver_preload([__name__])
    return context


def _leave_interrupts(worker: int) -> None:
    """To the training, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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


class PartlyLabeledDataset(Dataset):
    """Labeled images, then unlabeled ones: float32 (1, H, W), bool (C, H, W), and whether that mask counts.

    Of up to `MOST_KEPT_IMAGES` unlabeled images each is decoded once and kept.
    """

    def __init__(self, labeled: LabeledDataset, unlabeled: ImageDataset):
        self.labeled, self.unlabeled = labeled, unlabeled
        self._kept: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.labeled) + len(self.unlabeled)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, bool]:
        if index < len(self.labeled):
            return *self.labeled[index], True
        image = self._image(index - len(self.labeled))
        return image, torch.zeros_like(self.labeled[0][1]), False

    def _image(self, index: int) -> torch.Tensor:
        if index in self._kept:
            return self._kept[index]
        image, _ = self.unlabeled[index]
        if len(self.unlabeled) <= MOST_KEPT_IMAGES:
            self._kept[index] = image
        return image


def check_fills_batch(count: int, batch_size: int, source: str, what: str = "images") -> None:
    """Raises an InputError where there are fewer of them than in one batch."""
    if count < batch_size:
        raise InputError(f"{source}: {count} {what} don't fill one batch of {batch_size}; give a smaller --batch_size")
