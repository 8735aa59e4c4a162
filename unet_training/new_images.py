"""Masks of any image at its own size, by a trained network and, if asked, SAM.

    predictor = Predictor(model, Raw())
    masks, estimated_dice = predictor.predict(Path("radiograph.png"))    # bool (C, H, W), float64 (C,) or None
"""
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from segment_anything.checkpoints import identify
from segment_anything.embeddings import ImageEmbedding, compute_embedding
from segment_anything.fast.image_encoder import accelerate
from segment_anything.modeling import Sam as SamModel
from segment_anything.refinement.recommended import refine_calibrated_full_size
from segment_anything.refinement.refine import Refined, refine_full_size
from unet_training.models import TrainedModel
from unet_training.pseudo_labels import Raw, Recommended, SamRefined
from utils.datasets.annotated import load_image
from utils.files import image_size, read_grey
from utils.full_size import resize_masks_smoothly
from utils.precision import full_float32


class Predictor:
    """A network with what becomes of its masks. SAM is loaded with the first image."""

    def __init__(self, model: TrainedModel, labels: Raw | SamRefined | Recommended):
        """Raises InputError where what the masks are made with isn't there."""
        labels.check()
        self.model, self.labels = model, labels

    def predict(self, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
        """The masks of an image file, bool (C, H, W), at its size, and the estimated Dice of each, float64 (C,), NaN
        where there is none; None without SAM. The image is taken as it is, never mirrored.

        Raises:
            InputError: it isn't a readable image of 8 or 16 bits.
        """
        probabilities = self._probabilities(path)
        if isinstance(self.labels, Raw):
            return resize_masks_smoothly(probabilities, image_size(path)), None
        refined = self._refine(probabilities, self._embed(path))
        return refined.mask, refined.estimated_dice

    @full_float32()
    @torch.inference_mode()
    def _probabilities(self, path: Path) -> np.ndarray:
        """Float32, (C, h, w), at the network's input size."""
        image = torch.from_numpy(load_image(path, self.model.data.description))
        return self.model.network(image[None].to(self.model.device))[0].sigmoid().cpu().numpy()

    @cached_property
    def _refine(self) -> Callable[[np.ndarray, ImageEmbedding], Refined]:
        decoder = self.labels.sam.load_decoder(self.model.device)
        if isinstance(self.labels, Recommended):
            return partial(refine_calibrated_full_size, decoder=decoder, calibration=self.labels.calibrate(self.model))
        return partial(refine_full_size, decoder=decoder, options=self.labels.options)

    @cached_property
    def _encoder(self) -> SamModel:
        sam = self.labels.sam.load().to(self.model.device)
        accelerate(sam.image_encoder, torch.bfloat16 if self.labels.sam.precision == "bf16" else torch.float32)
        return sam

    def _embed(self, path: Path) -> ImageEmbedding:
        sam = self.labels.sam
        return compute_embedding(self._encoder, read_grey(path, sam.grey), sam.preprocessing, identify(sam.checkpoint))
