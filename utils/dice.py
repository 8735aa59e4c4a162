"""The metrics: Dice (paper, section 3), and how much of the outlines agrees."""
import numpy as np
import torch


def multilabel_dice(prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Dice 2|A and B| / (|A| + |B|) per class, NaN where the *truth* of the class is empty.

    A class that is missing in the truth is not counted, so a false positive there costs nothing.

    Args:
        prediction, truth: bool, (..., C, H, W)
    Returns:
        float32, (..., C), in [0, 1], on the device of the arguments
    """
    both = torch.count_nonzero(prediction & truth, dim=(-2, -1))
    in_truth = torch.count_nonzero(truth, dim=(-2, -1))
    total = in_truth + torch.count_nonzero(prediction, dim=(-2, -1))
    return torch.where(in_truth > 0, 2 * both / total, torch.nan)


def image_dice(dice: torch.Tensor) -> torch.Tensor:
    """The mean over the classes that the truth shows, (..., C) -> (...); NaN for an image that shows none."""
    return dice.nanmean(dim=-1)


def surface_dice(prediction: np.ndarray, truth: np.ndarray, tolerance: float) -> np.ndarray:
    """Normalised surface Dice per class (Nikolov et al. 2021, by MONAI): the share of both masks' outlines that lies
    within `tolerance` pixels of the other one. NaN where the *truth* of the class is empty.

    Args:
        prediction, truth: bool, (C, H, W)
    Returns:
        float64, (C,), in [0, 1]
    """
    from monai.metrics import compute_surface_dice  # takes seconds to import
    shown, found = (masks.any(axis=(1, 2)) for masks in (truth, prediction))
    dice = np.where(shown, 0, np.nan)
    for channel in np.flatnonzero(shown & found):
        rows, columns = ((line.min(), line.max() + 1) for line in (prediction[channel] | truth[channel]).nonzero())
        cropped = (torch.from_numpy(each[None, None, channel, slice(*rows), slice(*columns)])
                   for each in (prediction, truth))
        dice[channel] = compute_surface_dice(*cropped, class_thresholds=[tolerance], include_background=True).item()
    return dice
