"""The random walk against scikit-image and a dense solve."""
from dataclasses import replace

import numpy as np
import pytest
import skimage.segmentation

from utils.random_walk import RandomWalkOptions, random_walk, random_walk_masks


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A grey image of a bright disk in noise, and two overlapping masks on it."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2, columns - width / 2)
    grey = np.where(distance < height / 3, 170.0, 90.0) + 8 * rng.standard_normal((height, width))
    masks = np.stack([distance < height / 5, (distance < height / 4) & (columns > width / 2)])
    return grey, masks


@pytest.mark.parametrize("laplace_lambda", [1, 0.3])
def test_probabilities_equal_a_dense_solve(laplace_lambda):
    grey, masks = scene(11, 14)
    masks = masks * np.linspace(0.5, 1, masks.size).reshape(masks.shape)  # seeds as the U-Net's probabilities
    seeded = masks.any(axis=0)
    seeded[:2] = True
    laplacian = np.zeros((grey.size, grey.size))
    for row, column in np.ndindex(*grey.shape):
        for down, right in ((0, 1), (1, 0)):
            if row + down < grey.shape[0] and column + right < grey.shape[1]:
                a, b = row * 14 + column, (row + down) * 14 + column + right
                weight = np.exp(-(grey[row, column] - grey[row + down, column + right]) ** 2 / 25.0 ** 2)
                laplacian[[a, b], [b, a]] -= weight
                laplacian[[a, b], [a, b]] += weight
    laplacian = laplace_lambda * laplacian + 1e-5 * np.eye(grey.size)
    free = ~seeded.ravel()
    known = masks.reshape(2, -1)[:, ~free].T
    expected = np.linalg.solve(laplacian[free][:, free], -laplacian[free][:, ~free] @ known)
    np.testing.assert_allclose(random_walk(grey, seeded, masks, 25.0, laplace_lambda), expected.T, atol=1e-9)


def test_labels_equal_scikit_image_where_masks_do_not_overlap():
    """Its weights are exp(-beta difference^2 / (10 std)), and it knows one label per pixel."""
    grey, masks = scene(40, 29)
    masks[1] &= ~masks[0]
    sigma = 20.0
    background = ~masks.any(axis=0)
    background[5:-5, 5:-5] = False
    labels = masks[0] + 2 * masks[1] + 3 * background
    probabilities = skimage.segmentation.random_walker(
        grey, labels, beta=10 * grey.std() / sigma ** 2, mode="bf", tol=1e-9, return_full_prob=True)
    ours = random_walk(grey, labels > 0, masks, sigma)
    unseeded = labels == 0
    assert unseeded.sum() > 200
    np.testing.assert_allclose(ours, probabilities[:2][:, unseeded], atol=2e-3)


def test_an_uneroded_background_leaves_nothing_to_decide():
    grey, masks = scene(30, 20)
    for options in (RandomWalkOptions(walk_radius=0), RandomWalkOptions()):
        np.testing.assert_array_equal(random_walk_masks(grey, masks, options, masks.astype(float)), masks)


def test_masks_grow_to_the_images_edge():
    grey, masks = scene(60, 44)
    ground_truth = np.hypot(*(np.mgrid[:60, :44] - np.array([30, 22])[:, None, None])) < 20
    options = RandomWalkOptions(walk_radius=12)
    grown = random_walk_masks(grey, masks[:1], options, masks[:1].astype(float))[0]
    assert not (random_walk_masks(grey, masks[:1], options, 0.6 * masks[:1])[0] > grown).any()  # doubt grows less
    certain = replace(options, walk_seeds="masks")
    np.testing.assert_array_equal(random_walk_masks(grey, masks[:1], certain, 0.6 * masks[:1])[0], grown)
    assert (grown & ~masks[0]).any()
    assert not (grown & ~ground_truth).sum() > 0.02 * ground_truth.sum()
    assert 2 * (grown & ground_truth).sum() / (grown.sum() + ground_truth.sum()) > 0.95


@pytest.mark.parametrize("masks", [np.zeros((3, 8, 9), bool), np.ones((3, 8, 9), bool)])
def test_no_foreground_and_no_background(masks):
    options = RandomWalkOptions(walk_radius=4, sigma=10)
    np.testing.assert_array_equal(random_walk_masks(np.zeros((8, 9)), masks, options, masks.astype(float)), masks)


def test_other_effects_have_other_names():
    assert RandomWalkOptions().name() == "random_walk_released"
    assert RandomWalkOptions("active").name() == "random_walk_active"
    changed = RandomWalkOptions("active", 5, 10.5, 2.0, "masks")
    assert changed.name() == "random_walk_active_radius5_sigma10.5_lambda2_mask_seeds"
