"""Segmenting images with a trained U-Net."""
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from unet_training.u_net import UNet


@torch.inference_mode()
def predict(model: UNet, images: Dataset, device: torch.device, batch_size: int,
            num_workers: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (stem, probabilities) for a data set of (image (1, H, W), stem), with a progress bar.

    Probabilities are float32, (C, H, W), in [0, 1]; a pixel belongs to a class above 0.5 (paper, section 4).
    """
    loader = DataLoader(images, batch_size, num_workers=num_workers)
    with tqdm(total=len(images), desc="images", unit="image") as progress:
        for batch, stems in loader:
            probabilities = model(batch.to(device)).sigmoid().cpu().numpy()
            for stem, probability in zip(stems, probabilities, strict=True):
                yield stem, probability
                progress.update()
