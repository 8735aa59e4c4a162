"""The metric (paper, section 3)."""
import numpy as np


def multilabel_dice(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice 2|A and B| / (|A| + |B|) per class, NaN where the *truth* of the class is empty.

    A class that is missing in the truth is not counted, so a false positive there costs nothing.

    Args:
        prediction, truth: bool, (..., C, H, W)
    Returns:
        float64, (..., C), in [0, 1]
    """
    both = np.count_nonzero(prediction & truth, axis=(-2, -1))
    in_truth = np.count_nonzero(truth, axis=(-2, -1))
    total = in_truth + np.count_nonzero(prediction, axis=(-2, -1))
    return np.where(in_truth > 0, 2 * both / np.maximum(total, 1), np.nan)


def image_dice(dice: np.ndarray) -> np.ndarray:
    """The mean over the classes that the truth shows, (..., C) -> (...); NaN for an image that shows none."""
    shown = ~np.isnan(dice)
    count = shown.sum(axis=-1)
    return np.where(count > 0, np.where(shown, dice, 0).sum(axis=-1) / np.maximum(count, 1), np.nan)
