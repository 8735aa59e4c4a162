"""Segmenting images with a trained network."""
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from utils.overlap import batched, map_threaded
from utils.precision import full_float32

READERS = 4  # threads that read images


@torch.inference_mode()
def predict(model: nn.Module, images: Dataset, device: torch.device,
            batch_size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (stem, probabilities) for a data set of (image (1, H, W), stem), with a progress bar; the next images are
    read meanwhile. On the CPU the network sees one image at a time, which is no slower and bounds the memory.

    Probabilities are float32, (C, H, W), in [0, 1]; a pixel belongs to a class above 0.5.
    """
    at_once = batch_size if device.type == "cuda" else 1
    read = map_threaded(images.__getitem__, range(len(images)), READERS)
    with tqdm(total=len(images), desc="images", unit="image") as progress:
        for batch in batched(read, at_once):
            pixels, stems = zip(*batch, strict=True)
            with full_float32():
                probabilities = model(torch.stack(pixels).to(device)).sigmoid().cpu().numpy()
            for stem, probability in zip(stems, probabilities, strict=True):
                yield stem, probability
                progress.update()
