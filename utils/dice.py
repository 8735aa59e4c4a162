"""The metrics: Dice, and how much of the outlines agrees."""
import cv2
import numpy as np
import torch

from utils.boxes import bounding_slices


def multilabel_dice(prediction: torch.Tensor, ground_truth: torch.Tensor) -> torch.Tensor:
    """Dice 2|A and B| / (|A| + |B|) per class, NaN where the *ground truth* of the class is empty.

    A class that is missing in the ground truth is not counted, so a false positive there costs nothing.

    Args:
        prediction, ground_truth: bool, (..., C, H, W)
    Returns:
        float32, (..., C), in [0, 1], on the device of the arguments
    """
    both = torch.count_nonzero(prediction & ground_truth, dim=(-2, -1))
    in_ground_truth = torch.count_nonzero(ground_truth, dim=(-2, -1))
    total = in_ground_truth + torch.count_nonzero(prediction, dim=(-2, -1))
    return torch.where(in_ground_truth > 0, 2 * both / total, torch.nan)


def image_dice(dice: torch.Tensor) -> torch.Tensor:
    """The mean over the classes that the ground truth shows, (..., C) -> (...); NaN for an image that shows none."""
    return dice.nanmean(dim=-1)


def surface_dice(prediction: np.ndarray, ground_truth: np.ndarray, tolerance: float) -> np.ndarray:
    """Normalized surface Dice per class (Nikolov et al. 2021): the share of both masks' outlines that lies within
    `tolerance` pixels of the other one. NaN where the *ground truth* of the class is empty.

    An outline is the pixels of a mask with a neighbor, of four, that isn't in it or lies outside the image.

    Args:
        prediction, ground_truth: bool, (C, H, W)
    Returns:
        float64, (C,), in [0, 1]
    """
    predicted, shown = (masks.any(axis=(1, 2)) for masks in (prediction, ground_truth))
    dice, near = np.where(shown, 0, np.nan), _disk(tolerance)
    for channel in np.flatnonzero(shown & predicted):
        box = channel, *bounding_slices(prediction[channel] | ground_truth[channel])
        first, second = (_outline(masks[box]) for masks in (prediction, ground_truth))
        found = sum(np.count_nonzero(outline & cv2.dilate(other, near))
                    for outline, other in ((first, second), (second, first)))
        dice[channel] = found / (np.count_nonzero(first) + np.count_nonzero(second))
    return dice


def _outline(mask: np.ndarray) -> np.ndarray:
    """As `surface_dice` says, of bool (H, W), uint8 of 0 and 1."""
    mask = mask.astype(np.uint8)
    return mask - cv2.erode(mask, _disk(1), borderType=cv2.BORDER_CONSTANT, borderValue=0)


def _disk(radius: float) -> np.ndarray:
    """The pixels whose distance from the middle is at most the radius, uint8 of 0 and 1."""
    reach = np.arange(-int(radius), int(radius) + 1)
    return (np.hypot(reach, reach[:, None]) <= radius).astype(np.uint8)
