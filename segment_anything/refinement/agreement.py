"""How far SAM agrees with the U-Net's masks, as a sign of which of them can be relied on.

The authors' scripts/add_SAM_agreement.py (branch master) hands SAM the U-Net's mask without its batch axis, so that the
layer norms of the prompt encoder run over the mask's rows in place of its channels, and at the aspect of the network's
input in place of the image's. SAM then agrees less: on nine images 0.07 to 0.51, against 0.20 to 0.74 with the mask as
SAM expects it. The thresholds of the authors' code, 0.85 for wrists (branch master) and 0.65 for teeth (additional_ds),
belong to the released scale.
"""
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from segment_anything.embeddings import ImageEmbedding
from segment_anything.mask_decoder import PlainDecoder
from segment_anything.refinement.prompts import mask_geometry
from segment_anything.resize import fit_longest_side
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from utils.dice import multilabel_dice
from utils.errors import InputError
from utils.options import option
from utils.overlap import batched

CERTAINTY = np.log((1 - 1e-3) / 1e-3)  # logit of a pixel of the mask prompt


@dataclass(frozen=True)
class AgreementOptions:
    """How SAM is asked."""

    agreement: str = option(
        "corrected", "corrected: SAM sees the U-Net's mask as it expects masks; released: as the paper's released code "
        "shows it, which agrees less (the thresholds 0.85 and 0.65 of that code belong to this scale)",
        choices=("corrected", "released"))

    def name(self) -> str:
        """Names the file of masks with their agreement, together with the SAM's name."""
        return "agreement" if self.agreement == "corrected" else f"agreement_{self.agreement}"


def sam_agreement(probabilities: np.ndarray, embedding: ImageEmbedding, decoder: StoredEmbeddingDecoder,
                  options: AgreementOptions = AgreementOptions()) -> np.ndarray:
    """Dice between the U-Net's mask of each class and what SAM makes of it.

    SAM's prompts are the pixel of the highest probability as the positive point, that of the lowest as the negative
    one, and the mask itself.

    Args:
        probabilities: of the U-Net, float32, (C, H, W), in [0, 1]
        embedding: of the same image, from the decoder's checkpoint
    Returns:
        float64, (C,), NaN for a class without a mask
    Raises:
        InputError: the released agreement is asked of a SAM that isn't built as the first one.
    """
    to_prompt = mask_prompt
    if options.agreement == "released":
        to_prompt, decoder = released_mask_prompt, _decode_as_released(decoder)
    masks = probabilities > 0.5
    size, image, answers = masks.shape[1:], decoder.prepare([embedding]), np.zeros_like(masks)
    scale = np.divide(embedding.input_size, size)[::-1]  # of x, y
    for channels in batched(np.flatnonzero(masks.any(axis=(1, 2))), decoder.objects_at_once):
        points = np.stack([extreme_points(probabilities[channel]) for channel in channels]) * scale
        prompts = torch.stack([to_prompt(masks[channel], embedding) for channel in channels])
        logits, _ = decoder.decode(image, points=points, labels=np.tile([1, 0], (len(channels), 1)),
                                   mask_inputs=prompts.to(decoder.device))
        answers[channels] = (decoder.upscale(logits, embedding, size) > 0).cpu().numpy()
    return multilabel_dice(torch.from_numpy(answers), torch.from_numpy(masks)).double().numpy()


def extreme_points(probability: np.ndarray) -> np.ndarray:
    """x, y of the first pixel of the highest and of the lowest value of (H, W); float64, (2, 2)."""
    rows, columns = np.unravel_index([probability.argmax(), probability.argmin()], probability.shape)
    return np.stack([columns, rows], axis=1).astype(np.float64)


def mask_prompt(mask: np.ndarray, embedding: ImageEmbedding) -> torch.Tensor:
    """A mask (H, W) as SAM's low-resolution logits (4h, 4w): certain inside the image, zero in its padding."""
    side, (height, width) = mask_geometry(embedding)
    resized = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    logits = torch.zeros(side, side)
    logits[:height, :width] = torch.from_numpy(np.where(resized > 0, CERTAINTY, -CERTAINTY)).float()
    return logits


def released_mask_prompt(mask: np.ndarray, embedding: ImageEmbedding) -> torch.Tensor:
    """As `mask_prompt`, but the mask keeps its own aspect, and its logits are resized bilinearly
    (segment_anything/utils/prompt_utils.py of the authors' code)."""
    side, _ = mask_geometry(embedding)
    height, width = fit_longest_side(mask.shape, side)
    logits = torch.from_numpy(np.where(mask, CERTAINTY, -CERTAINTY)).float()[None, None]
    resized = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False, antialias=True)
    return F.pad(resized[0, 0], (0, side - width, 0, side - height))


class _WithoutBatchAxis(PlainDecoder):
    """Encodes each mask prompt as (1, 4h, 4w), of which upstream's layer norm takes the rows for the channels."""

    def encode_masks(self, masks: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.prompt_encoder.mask_downscaling(mask[None]) for mask in masks])


def _decode_as_released(decoder: StoredEmbeddingDecoder) -> StoredEmbeddingDecoder:
    if decoder.modules.keys() != {"prompt_encoder", "mask_decoder"}:
        raise InputError("--agreement released: needs a SAM that is built as the first one; give another --sam_type")
    return StoredEmbeddingDecoder(decoder.modules, _WithoutBatchAxis, decoder.checkpoint, decoder.device)
