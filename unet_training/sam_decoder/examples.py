"""Labeled images as a mask decoder is fine-tuned on them: as they are, and augmented."""
import hashlib
import math
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segment_anything.embeddings import describe_origin, embedding_path, is_embedded, save_missing_embeddings
from segment_anything.options import Sam
from segment_anything.refinement.cleaning import clean_masks
from segment_anything.refinement.prompts import Prompts, extract_prompts
from unet_training.epoch import similarity, warp
from unet_training.models import TrainedModel
from unet_training.sam_decoder.folds import predict_held_out
from utils.datasets.annotated import AnnotatedImages
from utils.files import image_size, read_grey, write_png
from utils.paths import embedding_folder

MOST_DEGREES, MOST_SCALE, MOST_SHIFT = 5.0, 1.06, 0.03  # of an augmented image; the shift in widths and heights
MOST_GAMMA = 1.3


@dataclass(frozen=True)
class Example:
    """One version of a labeled image.

    Attributes:
        embedding: its file
        ground_truth: bool, (C, H, W), at the initial network's input size
        predicted: of its cleaned masks, as a network predicts them that hasn't seen it; None where there is no such
    """

    embedding: Path
    ground_truth: np.ndarray
    predicted: Prompts | None


@dataclass(frozen=True)
class Augmentation:
    """A change that keeps left on the left: an image is turned, scaled and shifted, its grey values raised to a power.

    Attributes:
        matrix: for `warp`, (1, 2, 3); one for the image and its masks, whatever their sizes
        gamma: the power of grey values in [0, 1]
    """

    matrix: torch.Tensor
    gamma: float

    @classmethod
    def draw(cls, stem: str, number: int, seed: int, size: tuple[int, int]) -> "Augmentation":
        """The `number`-th one of an image of that size (H, W), always the same."""
        rng = np.random.default_rng([seed, number, zlib.crc32(stem.encode())])
        angle, scale, along_x, along_y, power = rng.uniform(-1, 1, 5)
        values = math.radians(MOST_DEGREES) * angle, MOST_SCALE ** scale, [MOST_SHIFT * along_x, MOST_SHIFT * along_y]
        return cls(similarity(*(torch.tensor([value]) for value in values), size).float(), MOST_GAMMA ** power)

    def change_image(self, grey: np.ndarray) -> np.ndarray:
        """uint8 or uint16 (H, W) -> the same type."""
        most = np.iinfo(grey.dtype).max
        moved = self.move(grey[None].astype(np.float32) / most, "bilinear")[0]
        return np.rint(most * moved.clip(0, 1) ** self.gamma).astype(grey.dtype)

    def move(self, values: np.ndarray, mode: str = "nearest") -> np.ndarray:
        """Masks, bool, or values, float32, (C, H, W), moved as the image; zero outside."""
        moved = warp(torch.from_numpy(values).float()[None], self.matrix, mode)[0].numpy()
        return moved > 0.5 if values.dtype == bool else moved


def load_examples(initial: TrainedModel, sam: Sam, folds: int, augmented: int, seed: int) -> list[list[Example]]:
    """The versions of each labeled image that shows an object, first it as it is; trains the networks of the folds, and
    computes embeddings, where they are missing."""
    data = initial.data
    stems = [stem for stem in initial.labeled_stems() if shows_object(data.mask(stem))]
    held_out = predict_held_out(initial, folds)
    sam.embed_missing(data, stems, initial.device)
    folder = embedding_folder(data.derived_dir, data.description.name, f"{sam.embeddings_name}_augmented_{seed}")
    _embed_augmented(sam, data, stems, augmented, seed, folder, initial.device)
    examples = []
    for stem in stems:
        ground_truth, probabilities = data.mask(stem), held_out.get(stem)
        versions = [_example(embedding_path(sam.folder(data), stem), ground_truth, probabilities)]
        for number in range(augmented):
            change = Augmentation.draw(stem, number, seed, image_size(data.image_path(stem)))
            moved = None if probabilities is None else change.move(probabilities, "bilinear")
            versions.append(_example(embedding_path(folder, f"{stem}_{number}"), change.move(ground_truth), moved))
        examples.append(versions)
    return examples


def shows_object(masks: np.ndarray) -> bool:
    """Whether SAM can be asked for one of the masks, bool (C, H, W)."""
    return bool(extract_prompts(masks).valid.any())


def _example(embedding: Path, ground_truth: np.ndarray, probabilities: np.ndarray | None) -> Example:
    predicted = None
    if probabilities is not None:
        predicted = extract_prompts(clean_masks(probabilities), probabilities)
    return Example(embedding, ground_truth, predicted)


def _embed_augmented(sam: Sam, data: AnnotatedImages, stems: Sequence[str], augmented: int, seed: int, folder: Path,
                     device: torch.device) -> None:
    """Computes `<stem>_<number>.h5` where they are missing."""
    digests = data.digests(stems)
    with tempfile.TemporaryDirectory() as scratch:
        images, of_images = [], {}
        for stem in stems:
            path, size = data.image_path(stem), image_size(data.image_path(stem))
            for number in range(augmented):
                name, change = f"{stem}_{number}", Augmentation.draw(stem, number, seed, size)
                digest = hashlib.sha256(f"{digests[stem]}{sam.grey.name} {change}".encode()).hexdigest()
                origin = describe_origin(digest, sam.identity, sam.preprocessing)
                if is_embedded(embedding_path(folder, name), origin):
                    continue
                images.append((name, Path(scratch) / f"{name}.png"))
                of_images[name] = digest
                write_png(images[-1][1], change.change_image(read_grey(path, sam.grey)))
        if images:
            save_missing_embeddings(images, folder, sam.type_name, sam.checkpoint, device, sam.precision,
                                    digests=of_images)
