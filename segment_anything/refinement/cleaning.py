"""Cleaning of predicted masks before prompts are taken from them (paper, mask cleaning)."""
import cv2
import numpy as np
import skimage.morphology

from utils.boxes import bounding_slices

SELECTIONS = ("highest_probability", "largest", "none")
OPERATIONS = {"dilation": cv2.MORPH_DILATE, "erosion": cv2.MORPH_ERODE,
              "opening": cv2.MORPH_OPEN, "closing": cv2.MORPH_CLOSE}
ELEMENTS = ("square", "disk", "diamond", "star")


def clean_masks(probabilities: np.ndarray, selection: str = "highest_probability") -> np.ndarray:
    """Thresholds at 0.5 and keeps one connected component (8-neighborhood) per class.

    Args:
        probabilities: float, (C, H, W), in [0, 1]
        selection: "highest_probability" keeps the component with the highest mean probability, "largest" the one with
            most pixels, "none" all of them. Of equally good components the first one in row-major order is kept.
    Returns:
        bool, (C, H, W); a class without foreground stays empty
    """
    masks = probabilities > 0.5
    if selection == "none":
        return masks
    for mask, probability in zip(masks, probabilities, strict=True):
        if mask.any():
            box = bounding_slices(mask)
            mask[box] = _best_component(mask[box], probability[box], selection)
    return masks


def _best_component(mask: np.ndarray, probability: np.ndarray, selection: str) -> np.ndarray:
    """The selected component of a mask (h, w) that has at least one."""
    _, components = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    score = np.bincount(components[mask]).astype(np.float64)  # pixels per component; 0 is the background
    if selection == "highest_probability":
        total = np.bincount(components[mask], weights=probability[mask])
        score = np.divide(total, score, out=np.zeros_like(score), where=score > 0)
    # OpenCV's numbering isn't row-major, so of equally good ones the first pixel decides
    good = (score == score.max())[components]  # never the background, its score is 0
    return components == components.flat[good.argmax()]


def structuring_element(element: str, radius: int) -> np.ndarray:
    """A square, disk, diamond or star as scikit-image defines them, uint8; about 2 * radius + 1 pixels wide."""
    if element == "square":
        return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return getattr(skimage.morphology, element)(radius).astype(np.uint8)


def apply_morphology(masks: np.ndarray, operation: str, element: str, radius: int) -> np.ndarray:
    """Dilation, erosion, opening or closing of every mask; what lies beyond the border has no effect.

    Args:
        masks: bool, (C, H, W)
        operation: one of `OPERATIONS`
        element: one of `ELEMENTS`
        radius: in pixels; 0 leaves the masks as they are
    Returns:
        bool, (C, H, W)
    """
    if radius == 0:
        return masks.copy()
    kernel = structuring_element(element, radius)
    changed = [cv2.morphologyEx(mask.astype(np.uint8), OPERATIONS[operation], kernel) for mask in masks]
    return np.array(changed, dtype=bool).reshape(masks.shape)
