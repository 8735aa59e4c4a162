"""What a network said at its input size, at the image's own."""
from collections.abc import Iterable, Sequence

import cv2
import numpy as np


def resize_map(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Values of pixels, float (h, w), at another size (H, W): bilinear, pixels as areas, as images are resized."""
    return cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_masks_smoothly(maps: Iterable[np.ndarray], size: Sequence[int]) -> np.ndarray:
    """Probabilities or masks, (h, w) each, resized in float32 and then cut at 0.5, so that outlines don't show the
    pixels that they come from.

    Returns:
        bool, (C, H, W)
    """
    return np.stack([resize_map(each.astype(np.float32, copy=False), size) > 0.5 for each in maps])
