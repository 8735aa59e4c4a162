"""Resizing an image to its longest side: what the installed package's ResizeLongestSide does, without torchvision.

The package imports torchvision for one call, which takes longer than everything else that a stage imports beside torch.
"""
import numpy as np
from PIL import Image


def fit_longest_side(size: tuple[int, int], longest_side: int) -> tuple[int, int]:
    """(H, W) in pixels -> (H, W) of the same shape, as near as whole pixels go, whose longer side is `longest_side`."""
    scale = longest_side / max(size)
    height, width = (int(side * scale + 0.5) for side in size)
    return height, width


def resize_longest_side(image: np.ndarray, longest_side: int) -> np.ndarray:
    """Resizes uint8 (H, W) or (H, W, 3) by linear interpolation, averaging over pixels where the image shrinks."""
    height, width = fit_longest_side(image.shape[:2], longest_side)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
