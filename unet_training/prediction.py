"""Segmenting images with a trained network."""
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from utils.overlap import batched, map_side_by_side, map_threaded
from utils.precision import full_float32

READERS = 4  # threads that read images


def predict(model: nn.Module, images: Dataset, device: torch.device,
            batch_size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (stem, probabilities) for a data set of (image (1, H, W), stem), with a progress bar. On a GPU the next
    images are read meanwhile; on a CPU images are read and segmented side by side, which bounds the memory.

    Probabilities are float32, (C, H, W), in [0, 1]; a pixel belongs to a class above 0.5.
    """
    def segment(batch: Sequence[tuple[torch.Tensor, str]]) -> list[tuple[str, np.ndarray]]:
        return _segment(model, batch, device)

    def read_and_segment(index: int) -> list[tuple[str, np.ndarray]]:
        return segment([images[index]])

    numbers = range(len(images))
    if device.type == "cuda":
        segmented = map(segment, batched(map_threaded(images.__getitem__, numbers, READERS), batch_size))
    else:
        segmented = map_side_by_side(read_and_segment, numbers)
    yield from tqdm(chain.from_iterable(segmented), "images", len(images), unit="image")


@full_float32()
@torch.inference_mode()
def _segment(model: nn.Module, images: Sequence[tuple[torch.Tensor, str]], device: torch.device
             ) -> list[tuple[str, np.ndarray]]:
    pixels, stems = zip(*images, strict=True)
    probabilities = model(torch.stack(pixels).to(device)).sigmoid().cpu().numpy()
    return list(zip(stems, probabilities, strict=True))
