"""Masks drawn over radiographs, for people to look at."""
import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

FILL = 0.4  # share of the class color inside a mask


def class_colors(count: int) -> np.ndarray:
    """`count` well-separated colors, uint8 RGB, (count, 3); the same channel always has the same one."""
    hues = [(channel * 0.618034) % 1 for channel in range(count)]  # golden ratio: neighbors differ most
    return np.array([[round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.75, 1)] for hue in hues], np.uint8)


def to_grey(image: np.ndarray) -> np.ndarray:
    """Stretches an (H, W) image of any range to uint8."""
    return cv2.normalize(image.astype(np.float32), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def overlay(grey: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Fills and outlines each class in its color.

    Args:
        grey: uint8, (H, W)
        masks: bool, (C, h, w), brought to the image's size
    Returns:
        uint8 RGB, (H, W, 3)
    """
    canvas = np.repeat(grey[..., None], 3, axis=-1)
    for mask, color in zip(masks, class_colors(len(masks)), strict=True):
        pixels = cv2.resize(mask.astype(np.uint8), grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
        inside = pixels > 0
        canvas[inside] = ((1 - FILL) * canvas[inside] + FILL * color).astype(np.uint8)
        outlines, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, color.tolist(), 1)
    return canvas


def stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Joins RGB pictures top to bottom, filled up with black to the widest."""
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate([np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0))) for picture in pictures])


def side_by_side(panels: Sequence[np.ndarray], titles: Sequence[str], height: int = 480) -> np.ndarray:
    """Joins RGB panels of one size left to right under their titles, scaled to `height` pixels."""
    scaled = []
    for panel, title in zip(panels, titles, strict=True):
        width = max(1, round(panel.shape[1] * height / panel.shape[0]))
        picture = cv2.resize(panel, (width, height), interpolation=cv2.INTER_CUBIC)
        picture = cv2.copyMakeBorder(picture, 28, 4, 4, 4, cv2.BORDER_CONSTANT)
        cv2.putText(picture, title, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        scaled.append(picture)
    return np.concatenate(scaled, axis=1)
