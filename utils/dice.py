"""The metrics: Dice (paper, section 3), and how much of the outlines agrees."""
import numpy as np
import torch


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
    """Normalized surface Dice per class (Nikolov et al. 2021, by MONAI): the share of both masks' outlines that lies
    within `tolerance` pixels of the other one. NaN where the *ground truth* of the class is empty.

    Args:
        prediction, ground_truth: bool, (C, H, W)
    Returns:
        float64, (C,), in [0, 1]
    """
    from monai.metrics import compute_surface_dice  # takes seconds to import
    shown, found = (masks.any(axis=(1, 2)) for masks in (ground_truth, prediction))
    dice = np.where(shown, 0, np.nan)
    for channel in np.flatnonzero(shown & found):
        either = prediction[channel] | ground_truth[channel]
        rows, columns = ((line.min(), line.max() + 1) for line in either.nonzero())
        cropped = (torch.from_numpy(each[None, None, channel, slice(*rows), slice(*columns)])
                   for each in (prediction, ground_truth))
        dice[channel] = compute_surface_dice(*cropped, class_thresholds=[tolerance], include_background=True).item()
    return dice
