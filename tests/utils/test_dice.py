import math

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.spatial.distance import dice as dice_dissimilarity

from utils.dice import image_dice, multilabel_dice, surface_dice


def test_dice_equals_scipy_and_skips_classes_that_the_ground_truth_lacks():
    random = np.random.default_rng(0)
    ground_truth, prediction = random.random((2, 3, 5, 9, 14)) < 0.4  # images, classes, rows, columns
    ground_truth[1, 2] = False
    prediction[0, 0] = False
    dice = multilabel_dice(torch.from_numpy(prediction), torch.from_numpy(ground_truth))
    assert dice.shape == (3, 5)
    for image, label in np.ndindex(3, 5):
        if ground_truth[image, label].any():
            expected = 1 - dice_dissimilarity(ground_truth[image, label].ravel(), prediction[image, label].ravel())
            assert math.isclose(dice[image, label], expected, rel_tol=1e-6)
    assert dice[1, 2].isnan() and dice.isnan().sum() == 1
    assert dice[0, 0] == 0


def test_image_dice_is_the_mean_over_shown_classes():
    dice = torch.tensor([[0.5, math.nan, 1.0], [math.nan, math.nan, math.nan]])
    assert image_dice(dice)[0] == 0.75
    assert image_dice(dice)[1].isnan()


def test_surface_dice_equals_all_distances_between_the_outlines():
    random = np.random.default_rng(1)
    ground_truth, prediction = np.zeros((2, 6, 40, 25), bool)
    for channel in range(2):
        top, left = random.integers(0, 12, 2)
        ground_truth[channel, top:top + 20, left:left + 9] = True
        prediction[channel, top + 2:top + 25, left:left + 12] = True
    ground_truth[2:4], prediction[2:4] = random.random((2, 2, 40, 25)) < 0.3
    ground_truth[4, 3:8, 3:8] = prediction[5, 3:8, 3:8] = True

    def outline(mask: np.ndarray) -> np.ndarray:
        inside = np.pad(mask, 1)
        surrounded = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        return np.argwhere(mask & ~surrounded)

    for tolerance in (0.5, 1, 2, 3.5):
        dice = surface_dice(prediction, ground_truth, tolerance)
        for channel in range(4):
            distances = cdist(outline(ground_truth[channel]), outline(prediction[channel]))
            near = (distances.min(axis=0) <= tolerance).sum() + (distances.min(axis=1) <= tolerance).sum()
            assert math.isclose(dice[channel], near / sum(distances.shape), rel_tol=1e-6)
        assert dice[4] == 0 and math.isnan(dice[5])
