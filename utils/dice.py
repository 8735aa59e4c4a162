"""The metric (paper, section 3)."""
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
