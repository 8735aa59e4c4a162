"""Masks of any image at its own size, by a trained network and, if asked, SAM.

    predictor = Predictor(model, Raw())
    masks, estimated_dice = predictor.predict(predictor.read(Path("a.png")))    # bool (C, H, W), float64 (C,) or None
"""
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np
import torch

from segment_anything.checkpoints import identify
from segment_anything.embeddings import ImageEmbedding, compute_embedding
from segment_anything.fast.image_encoder import accelerate
from segment_anything.modeling import Sam as SamModel
from segment_anything.options import Sam
from segment_anything.refinement.recommended import refine_calibrated_full_size
from segment_anything.refinement.refine import Refined, refine_full_size
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from unet_training.models import TrainedModel
from unet_training.pseudo_labels import Raw, Recommended, SamRefined
from utils.datasets.annotated import normalize, scale
from utils.datasets.dicom import SUFFIXES as DICOM_SUFFIXES
from utils.datasets.dicom import is_dicom, read_dicom
from utils.errors import InputError
from utils.files import read_grey
from utils.full_size import resize_masks_smoothly
from utils.grey import GreyValues
from utils.precision import full_float32

WHITE = 65535


def read_image(image: Path | str | np.ndarray, values: GreyValues) -> np.ndarray:
    """An image as networks see it: uint8 or uint16, (H, W), 0 is black.

    Args:
        image: a file, DICOM's too; or grey (H, W) or RGB (H, W, 3) pixels: uint8 or uint16 as a file would hold them,
            or float in [0, 1], where 0 is black
        values: how the values of files are meant; DICOM and float pixels say themselves what is black
    Raises:
        InputError: it isn't a readable image, or an array of another kind.
    """
    if isinstance(image, np.ndarray):
        return _read_array(image, values)
    path = Path(image)
    if not path.is_file() or (path.suffix.lower() not in DICOM_SUFFIXES and not is_dicom(path)):
        return read_grey(path, values)
    pixels = read_dicom(path).pixels
    return values.apply(WHITE - pixels if values.inverted else pixels, path)


def _read_array(pixels: np.ndarray, values: GreyValues) -> np.ndarray:
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or 0 in pixels.shape:
        raise InputError(f"image: an array of the shape {pixels.shape}; give grey (H, W) or RGB (H, W, 3) pixels")
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN is neither
            raise InputError("image: float pixels must be from 0 (black) to 1; scale them, or give uint8 or uint16")
        pixels = np.rint(pixels.astype(np.float64) * WHITE).astype(np.uint16)
        values = GreyValues(range="percentiles" if values.range == "percentiles" else "stored")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"image: pixels of the type {pixels.dtype}; give uint8, uint16, or float from 0 to 1")
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
    return values.apply(grey)


@full_float32()
@torch.inference_mode()
def predict_probabilities(model: TrainedModel, grey: np.ndarray, what: object = "image") -> np.ndarray:
    """What a network says of an image as of `read_image`: float32, (C, h, w), in [0, 1], at its input size. `what`
    names the image in messages."""
    description = model.data.description
    image = torch.from_numpy(normalize(scale(grey, description), description, what))
    return model.network(image[None].to(model.device))[0].sigmoid().cpu().numpy()


class LoadedSam:
    """A SAM in memory; its parts are loaded when they are needed first."""

    def __init__(self, sam: Sam, device: torch.device):
        """Raises InputError where its weights aren't there."""
        sam.check_present()
        self.sam, self.device = sam, device

    @cached_property
    def decoder(self) -> StoredEmbeddingDecoder:
        """What makes masks of an embedding."""
        return self.sam.load_decoder(self.device)

    @cached_property
    def _model(self) -> SamModel:
        model = self.sam.load().to(self.device)
        accelerate(model.image_encoder, torch.bfloat16 if self.sam.precision == "bf16" else torch.float32)
        return model

    def embed(self, grey: np.ndarray) -> ImageEmbedding:
        """Of an image as of `read_image`: the part that takes long."""
        return compute_embedding(self._model, grey, self.sam.preprocessing, identify(self.sam.checkpoint))


class Predictor:
    """A network with what becomes of its masks. SAM is loaded with the first image."""

    def __init__(self, model: TrainedModel, labels: Raw | SamRefined | Recommended):
        """Raises InputError where what the masks are made with isn't there."""
        labels.check()
        self.model, self.labels = model, labels

    def read(self, path: Path) -> np.ndarray:
        """An image file as the network and SAM see it, uint8 or uint16, (H, W); as it is, never mirrored. Raises
        InputError as `read_image`."""
        return read_image(path, self.model.data.description.grey)

    def predict(self, grey: np.ndarray, what: object = "image") -> tuple[np.ndarray, np.ndarray | None]:
        """The masks of an image as of `read`, bool (C, H, W), at its size, and the estimated Dice of each, float64
        (C,), NaN where there is none; None without SAM. `what` names the image in messages."""
        probabilities = predict_probabilities(self.model, grey, what)
        if isinstance(self.labels, Raw):
            return resize_masks_smoothly(probabilities, grey.shape), None
        refined = self._refine(probabilities, self._sam.embed(grey))
        return refined.mask, refined.estimated_dice

    @cached_property
    def _sam(self) -> LoadedSam:
        return LoadedSam(self.labels.sam, self.model.device)

    @cached_property
    def _refine(self) -> Callable[[np.ndarray, ImageEmbedding], Refined]:
        decoder = self._sam.decoder
        if isinstance(self.labels, Recommended):
            return partial(refine_calibrated_full_size, decoder=decoder, calibration=self.labels.calibrate(self.model))
        return partial(refine_full_size, decoder=decoder, options=self.labels.options)
