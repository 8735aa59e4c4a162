"""How far SAM agrees with the U-Net's masks, as a sign of which of them can be relied on (paper's comparison)."""
import cv2
import numpy as np
import torch

from segment_anything.embeddings import ImageEmbedding
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from utils.dice import multilabel_dice
from utils.overlap import batched

CERTAINTY = np.log((1 - 1e-3) / 1e-3)  # logit of a pixel of the mask prompt


def sam_agreement(probabilities: np.ndarray, embedding: ImageEmbedding, decoder: StoredEmbeddingDecoder) -> np.ndarray:
    """Dice between the U-Net's mask of each class and what SAM makes of it.

    SAM's prompts are the pixel of the highest probability as the positive point, that of the lowest as the negative
    one, and the mask itself.

    Args:
        probabilities: of the U-Net, float32, (C, H, W), in [0, 1]
        embedding: of the same image, from the decoder's checkpoint
    Returns:
        float64, (C,), NaN for a class without a mask
    """
    masks = probabilities > 0.5
    size, image, sams = masks.shape[1:], decoder.prepare([embedding]), np.zeros_like(masks)
    scale = np.divide(embedding.input_size, size)[::-1]  # of x, y
    for some in batched(np.flatnonzero(masks.any(axis=(1, 2))), decoder.objects_at_once):
        points = np.stack([extreme_points(probabilities[channel]) for channel in some]) * scale
        prompts = torch.stack([mask_prompt(masks[channel], embedding) for channel in some])
        logits, _ = decoder.decode(image, points=points, labels=np.tile([1, 0], (len(some), 1)),
                                   mask_inputs=prompts.to(decoder.device))
        sams[some] = (decoder.upscale(logits, embedding, size) > 0).cpu().numpy()
    return multilabel_dice(torch.from_numpy(sams), torch.from_numpy(masks)).double().numpy()


def extreme_points(probability: np.ndarray) -> np.ndarray:
    """x, y of the first pixel of the highest and of the lowest value of (H, W); float64, (2, 2)."""
    rows, columns = np.unravel_index([probability.argmax(), probability.argmin()], probability.shape)
    return np.stack([columns, rows], axis=1).astype(np.float64)


def mask_prompt(mask: np.ndarray, embedding: ImageEmbedding) -> torch.Tensor:
    """A mask (H, W) as SAM's low-resolution logits (4h, 4w): certain inside the image, zero in its padding."""
    side = 4 * embedding.embedding.shape[-1]
    height, width = (max(1, round(length * side / embedding.encoder_input_size)) for length in embedding.input_size)
    resized = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    logits = torch.zeros(side, side)
    logits[:height, :width] = torch.from_numpy(np.where(resized > 0, CERTAINTY, -CERTAINTY)).float()
    return logits
