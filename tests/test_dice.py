import math

import numpy as np
import torch
from scipy.spatial.distance import dice as dice_dissimilarity

from utils.dice import image_dice, multilabel_dice


def test_dice_equals_scipy_and_skips_classes_that_the_truth_lacks():
    random = np.random.default_rng(0)
    truth, prediction = random.random((2, 3, 5, 9, 14)) < 0.4  # images, classes, rows, columns
    truth[1, 2] = False
    prediction[0, 0] = False
    dice = multilabel_dice(torch.from_numpy(prediction), torch.from_numpy(truth))
    assert dice.shape == (3, 5)
    for image, label in np.ndindex(3, 5):
        if truth[image, label].any():
            expected = 1 - dice_dissimilarity(truth[image, label].ravel(), prediction[image, label].ravel())
            assert math.isclose(dice[image, label], expected, rel_tol=1e-6)
    assert dice[1, 2].isnan() and dice.isnan().sum() == 1
    assert dice[0, 0] == 0


def test_image_dice_is_the_mean_over_shown_classes():
    dice = torch.tensor([[0.5, math.nan, 1.0], [math.nan, math.nan, math.nan]])
    assert image_dice(dice)[0] == 0.75
    assert image_dice(dice)[1].isnan()
