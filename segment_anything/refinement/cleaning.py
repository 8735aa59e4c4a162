"""Cleaning of predicted masks before prompts are taken from them (utils/segmentation_preprocessing.py of the authors).
"""
import cv2
import numpy as np

from utils.boxes import bounding_boxes

SELECTIONS = ("highest_probability", "largest", "none")
OPERATIONS = {"dilation": (cv2.dilate,), "erosion": (cv2.erode,),
              "opening": (cv2.erode, cv2.dilate), "closing": (cv2.dilate, cv2.erode)}
ELEMENTS = ("square", "centered_square", "disk", "diamond", "star")


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
    _keep_components(masks, probabilities, selection)
    return masks


def select_components(masks: np.ndarray, probabilities: np.ndarray, selection: str) -> np.ndarray:
    """As `clean_masks`, of masks, bool (C, H, W), that were thresholded already."""
    masks = masks.copy()
    _keep_components(masks, probabilities, selection)
    return masks


def _keep_components(masks: np.ndarray, probabilities: np.ndarray, selection: str) -> None:
    """Changes the masks in place."""
    if selection == "none":
        return
    for mask, probability, (x0, y0, x1, y1) in zip(masks, probabilities, bounding_boxes(masks).tolist(), strict=True):
        if x1 >= x0:
            box = slice(y0, y1 + 1), slice(x0, x1 + 1)
            mask[box] = _best_component(mask[box], probability[box], selection)


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
    """One of `ELEMENTS`, uint8. Radius 0 is a single pixel.

    `square` is the released code's: only `radius` pixels wide, as of `skimage.morphology.square`. `centered_square` is
    2 * radius + 1 pixels wide, as the disk and the diamond, for which scikit-image means a radius by that name.
    """
    if element == "square":
        return np.ones((max(radius, 1), max(radius, 1)), np.uint8)
    if element == "centered_square":
        return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    import skimage.morphology  # takes a while, and is rarely needed
    return getattr(skimage.morphology, element)(radius).astype(np.uint8)


def apply_morphology(masks: np.ndarray, operation: str, element: str, radius: int) -> np.ndarray:
    """Dilation, erosion, opening or closing of every mask; what lies beyond the border has no effect.

    Of an element with an even side n, an erosion looks from n / 2 pixels before each pixel to n / 2 - 1 behind it, and
    a dilation the other way round, as in kornia, by which the released code does it.

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
    middle = {cv2.erode: len(kernel) // 2, cv2.dilate: (len(kernel) - 1) // 2}
    changed = masks.astype(np.uint8)
    for mask in changed:
        for step in OPERATIONS[operation]:
            mask[:] = step(mask, kernel, anchor=(middle[step], middle[step]))
    return changed.astype(bool)
