"""The method on images in memory, for a notebook; where the package is installed, all of it comes from `sam_burden`.

    unet = load_model("offline-...")
    probabilities = unet.predict(image)                     # float32 (C, H, W), at the image's size
    sam = load_sam("medsam_lite")
    refined = refine(probabilities, image, sam)
    refined.masks, refined.estimates, refined.prompts       # bool (C, H, W), float64 (C,), what SAM was asked

An image is a file, or grey (H, W) or RGB (H, W, 3) pixels, see `unet_training.new_images.read_image`.
"""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segment_anything.embeddings import ImageEmbedding
from segment_anything.options import Sam, SamOptions
from segment_anything.refinement.prompts import ClassPrompt, select_prompt
from segment_anything.refinement.recommended import (
    Calibration,
    prompt_calibrated,
    refine_calibrated,
    refine_calibrated_full_size,
)
from segment_anything.refinement.refine import RefinementOptions, clean_and_prompt, refine_full_size
from segment_anything.refinement.refine import refine as refine_at_input_size
from unet_training.models import DataOptions, TrainedModel
from unet_training.new_images import LoadedSam, predict_probabilities, read_image
from unet_training.pseudo_labels import Recommended, RecommendedOptions, SamRefined
from utils.cli import select_device
from utils.errors import InputError
from utils.full_size import resize_map
from utils.grey import GreyValues
from utils.paths import DATA
from utils.tracking.models import fetch_model

Image = Path | str | np.ndarray
FEWER_BITS = GreyValues(range="bits")  # what an image of 16 bits may have, as data sets that say nothing else


@dataclass(frozen=True)
class LoadedModel:
    """A trained network in memory."""

    model: TrainedModel

    @property
    def labels(self) -> tuple[str, ...]:
        """In channel order."""
        return self.model.data.description.labels

    @property
    def grey(self) -> GreyValues:
        """How the values of its data set's images are meant."""
        return self.model.data.description.grey

    def predict(self, image: Image, at_image_size: bool = True) -> np.ndarray:
        """The probability that a pixel belongs to each label.

        Args:
            image: as it is, never mirrored; its values as the data set's files have them
            at_image_size: resized bilinearly to the image's size; else at the network's input size
        Returns:
            float32, (C, H, W), in [0, 1]; above 0.5 it is the mask of scripts.predict_folder, or at the input size that
            of scripts.save_segmentations
        Raises:
            InputError: the image isn't readable, or an array of another kind.
        """
        grey = read_image(image, self.grey)
        probabilities = predict_probabilities(self.model, grey, "image" if isinstance(image, np.ndarray) else image)
        if not at_image_size:
            return probabilities
        return np.stack([resize_map(each, grey.shape) for each in probabilities])

    def calibrate(self, sam: LoadedSam) -> Calibration:
        """What the labeled validation images say of this network and a SAM: the recommended way of `refine`. Asked
        once; kept beside the data set's masks."""
        return Recommended(replace(sam.sam, grey=self.grey), RecommendedOptions("recommended")).calibrate(self.model)


@dataclass(frozen=True)
class RefinedImage:
    """What SAM made of the masks of one image.

    Attributes:
        masks: bool, (C, H, W)
        estimates: SAM's of the Dice of each mask, float64, (C,), in [0, 1]; NaN where it wasn't asked
        prompts: of each label what SAM was asked in the first and the second pass, in pixels of the image (but for the
            logits of a mask); None where it wasn't
    """

    masks: np.ndarray
    estimates: np.ndarray
    prompts: list[tuple[ClassPrompt, ClassPrompt] | None]


def load_model(model_id: str, data_dir: Path | str = DATA, gpu_id: int | None = None) -> LoadedModel:
    """A trained network by the id that its training printed.

    Args:
        data_dir: folder of all data sets; the one that the network was trained on must be there
        gpu_id: left out: the first GPU, or the CPU
    Raises:
        InputError: there is no such network, or its data set isn't there or has changed its labels.
    """
    record = fetch_model(model_id)
    data = DataOptions(record.parameters["dataset"], Path(data_dir)).open()
    return LoadedModel(TrainedModel.load(record, data, select_device(gpu_id)))


def load_sam(sam_type: str, checkpoint: Path | str | None = None, sam_model_id: str | None = None,
             data_dir: Path | str = DATA, gpu_id: int | None = None) -> LoadedSam:
    """A SAM by its type, as `--sam_type` of the commands.

    Args:
        checkpoint: its weights; left out: as installed, or the file of the public name in `data_dir`/sam_checkpoints
        sam_model_id: a mask decoder that scripts.finetune_sam made, in the place of its own
        data_dir, gpu_id: as of `load_model`
    Raises:
        InputError: there is no such type, or its weights aren't there; the message says how to get them.
    """
    options = SamOptions(sam_type, Path(checkpoint) if checkpoint else None, sam_model_id=sam_model_id)
    return LoadedSam(Sam.find(options, Path(data_dir), sam_type), select_device(gpu_id))


def refine(probabilities: np.ndarray, image: Image | ImageEmbedding, sam: LoadedSam,
           options: RefinementOptions | Calibration | None = None, at_image_size: bool = True,
           grey: GreyValues = FEWER_BITS) -> RefinedImage:
    """Masks by SAM, prompted by those of a network.

    Prompts are taken at the size of the probabilities. With `unet.predict(image, at_image_size=False)` masks are those
    of `scripts.predict_folder --refine`, and without `at_image_size` here, too, those of
    scripts.save_refined_segmentations.

    Args:
        probabilities: float, (C, h, w), in [0, 1]; or masks, bool
        image: the same for which they are; or `sam.embed(...)` of it, to refine it in several ways
        options: the paper's way where it is left out, with the prompts that the SAM was trained with; or
            `unet.calibrate(sam)` for the recommended way
        at_image_size: masks of the image's size; else of that of the probabilities
        grey: how the values of image files are meant: `unet.grey`, where a data set has ways of its own
    Raises:
        InputError: the image isn't readable, or an array is of another kind.
    """
    probabilities = np.asarray(probabilities, np.float32)
    if probabilities.ndim != 3 or not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise InputError(f"probabilities: an array of the shape {probabilities.shape}; give (C, H, W), from 0 to 1")
    embedding = image if isinstance(image, ImageEmbedding) else sam.embed(read_image(image, grey))
    if isinstance(options, Calibration):
        refiner = refine_calibrated_full_size if at_image_size else refine_calibrated
        prompts, names = prompt_calibrated(probabilities, options), (options.prompts, ())
    else:
        options = options or SamRefined(sam.sam, RefinementOptions()).with_own_prompts(False).options
        refiner = refine_full_size if at_image_size else refine_at_input_size
        prompts, names = clean_and_prompt(probabilities, options)[1], (options.prompt1st, options.prompt2nd)
    refined = refiner(probabilities, embedding, sam.decoder, options)
    asked = [tuple(select_prompt(prompts, channel, of_pass, embedding.original_size) for of_pass in names)
             if valid else None for channel, valid in enumerate(prompts.valid)]
    return RefinedImage(refined.mask, refined.estimated_dice, asked)
