"""Labeled images as what a network's frozen part makes of them, for training without augmentation."""
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from segment_anything.embeddings import (
    ImageEmbedding,
    describe_origin,
    embedding_path,
    is_embedded,
    load_embedding,
    save_embedding,
)
from unet_training.data import LabeledDataset
from unet_training.networks.lraspp import LrasppOnSam
from utils.locks import exclusive


class StoredFeatures(Dataset):
    """Features and masks: float32 (D, h, w) and bool (C, H, W). The features, those of a prediction, are computed once,
    into files."""

    def __init__(self, model: LrasppOnSam, labeled: LabeledDataset, folder: Path, device: torch.device):
        """Raises InputError if a file in `folder` is of another SAM checkpoint."""
        encoder, size = model.encoder, model.config["input_size"]
        self.labeled, self.checkpoint = labeled, encoder.checkpoint
        self.paths = [embedding_path(folder, stem) for stem in labeled.stems]
        with exclusive(folder):
            origins = [self._describe(image, model) for image, _ in (labeled[index] for index in range(len(labeled)))]
            missing = [index for index, path in enumerate(self.paths) if not is_embedded(path, origins[index])]
            for index in tqdm(missing, "SAM features", unit="image", disable=not missing):
                image, _ = labeled[index]
                features = {"image": model.encode(image[None].to(device))[0].cpu()}
                save_embedding(self.paths[index], ImageEmbedding(features, size, encoder.resized, encoder.side,
                                                                 self.checkpoint), origin=origins[index])

    def _describe(self, image: torch.Tensor, model: LrasppOnSam) -> dict[str, str]:
        """Of the pixels themselves, as they are normalized."""
        normalization = np.array([model.config["mean"], model.config["std"]])
        digest = hashlib.sha256(image.numpy().tobytes() + normalization.tobytes())
        return describe_origin(digest.hexdigest(), self.checkpoint)

    def __len__(self) -> int:
        return len(self.labeled)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return load_embedding(self.paths[index], self.checkpoint).features["image"], self.labeled[index][1]
