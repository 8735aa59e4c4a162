"""Prompts against a pixel-by-pixel computation."""
from fractions import Fraction

import numpy as np
import pytest
import torch

from segment_anything.checkpoints import CheckpointId
from segment_anything.embeddings import ImageEmbedding
from segment_anything.refinement.prompts import PROMPTS, ClassPrompt, extract_prompts, fit_to_sam, select_prompt


def rounded_half_to_even(total: int, count: int) -> int:
    return round(Fraction(total, count))


def brute_force(masks: np.ndarray) -> tuple[list, list]:
    """Box and positive point of each class, or None, by visiting every pixel."""
    boxes, points = [], []
    for channel in range(len(masks)):
        every, alone = [], []
        for y in range(masks.shape[1]):
            for x in range(masks.shape[2]):
                if masks[channel, y, x]:
                    every.append((x, y))
                    if sum(int(other[y, x]) for other in masks) == 1:
                        alone.append((x, y))
        xs, ys = [x for x, _ in every], [y for _, y in every]
        boxes.append((min(xs), min(ys), max(xs), max(ys)) if every else None)
        points.append(tuple(rounded_half_to_even(sum(axis), len(alone)) for axis in zip(*alone, strict=True))
                      if alone else None)
    return boxes, points


def random_masks(seed: int) -> np.ndarray:
    """Overlapping rectangles, some speckled, some empty, some at the border, some wholly covered by others."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((5, int(rng.integers(5, 20)), int(rng.integers(5, 20))), bool)
    for mask in masks[:4]:
        y, x = sorted(rng.integers(0, masks.shape[1] + 1, 2)), sorted(rng.integers(0, masks.shape[2] + 1, 2))
        mask[slice(*y), slice(*x)] = rng.random((y[1] - y[0], x[1] - x[0])) < rng.choice([0.3, 1.0])
    if seed % 2:
        masks[4] = masks[0]
    return masks


@pytest.mark.parametrize("seed", range(40))
def test_prompts_equal_brute_force(seed):
    masks = random_masks(seed)
    prompts = extract_prompts(masks)
    boxes, points = brute_force(masks)
    for channel, (box, point) in enumerate(zip(boxes, points, strict=True)):
        np.testing.assert_array_equal(prompts.boxes[channel], np.full(4, np.nan) if box is None else box)
        np.testing.assert_array_equal(prompts.centroids[channel], np.full(2, np.nan) if point is None else point)
        assert prompts.valid[channel] == (point is not None)
        if point is None:
            continue
        others = [other for index, other in enumerate(points) if other is not None and index != channel]
        asked = select_prompt(prompts, channel, ("pos_points", "neg_points"))
        np.testing.assert_array_equal(asked.points, [point, *others])
        np.testing.assert_array_equal(asked.labels, [1] + [0] * len(others))
        assert asked.box is None
        np.testing.assert_array_equal(select_prompt(prompts, channel, ("box",)).box, box)


def test_centroids_are_rounded_half_to_even():
    masks = np.zeros((2, 4, 8), bool)
    masks[0, 0, :2] = True  # mean x 0.5 -> 0
    masks[1, 1:3, 3:5] = True  # mean x 3.5 -> 4, y 1.5 -> 2
    np.testing.assert_array_equal(extract_prompts(masks).centroids, [[0, 0], [4, 2]])


def test_scaling_swaps_no_axis():
    masks = np.zeros((1, 10, 20), bool)
    masks[0, 2:5, 6:15] = True
    scaled = select_prompt(extract_prompts(masks), 0, ("box", "pos_points"), (30, 100))
    np.testing.assert_allclose(scaled.box, [30, 6, 70, 12])
    np.testing.assert_allclose(scaled.points, [[50, 9]])


def test_a_mask_is_the_unets_logits_without_what_was_cleaned_away():
    probabilities = np.array([[[0, 0.25, 1, 0.75, 0.5, 0.9]], [[0.6, 0.6, 0, 0, 0, 0]]], np.float32)
    masks = probabilities > 0.5
    masks[0, 0, 5] = False
    asked = select_prompt(extract_prompts(masks, probabilities), 0, ("box", "mask"), (2, 12))
    np.testing.assert_allclose(asked.logits, [[-16, -np.log(3), 16, np.log(3), 0, -16]], rtol=1e-6)
    assert asked.logits.dtype == np.float32
    assert asked.shape == (True, 0, True)


@pytest.mark.parametrize("input_size", [(64, 128), (128, 64)])
def test_a_mask_lies_where_the_image_does_in_sams_input(input_size):
    embedding = ImageEmbedding({"image": torch.zeros(2, 8, 8)}, (60, 120), input_size, 128, CheckpointId("a", "b"))
    expected = np.zeros((32, 32), np.float32)
    expected[:input_size[0] // 4, :input_size[1] // 4] = 3
    fitted = fit_to_sam(ClassPrompt(logits=np.full((9, 7), 3, np.float32)), embedding)
    np.testing.assert_allclose(fitted.logits, expected, rtol=1e-6)


def test_a_prompt_is_added_by_one_entry(monkeypatch):
    masks = np.zeros((2, 5, 7), bool)
    masks[0, 1:4, 2:5] = masks[1, 4] = True

    def corner(prompts, channel):
        rows, columns = np.nonzero(prompts.masks[channel])
        return ClassPrompt(points=np.array([[columns[0], rows[0]]], float), labels=np.array([1]))

    monkeypatch.setitem(PROMPTS, "corner", corner)
    asked = select_prompt(extract_prompts(masks), 0, ("corner", "neg_points"))
    np.testing.assert_array_equal(asked.points, [[3, 4], [2, 1]])
    np.testing.assert_array_equal(asked.labels, [0, 1])
    assert asked.shape == (False, 2, False)


def test_one_class_alone_has_no_negative_points():
    masks = np.zeros((3, 6, 7), bool)
    masks[1, 2:4, 1:6] = True
    prompts = extract_prompts(masks)
    assert select_prompt(prompts, 1, ("neg_points",)).empty
    both = select_prompt(prompts, 1, ("pos_points", "neg_points"))
    np.testing.assert_array_equal(both.labels, [1])
    np.testing.assert_array_equal(both.points, prompts.centroids[[1]])


def test_a_wholly_overlapped_class_gives_no_point_but_its_box_is_known():
    masks = np.zeros((2, 8, 9), bool)
    masks[0, 1:7, 1:8] = True
    masks[1, 3:5, 3:6] = True
    prompts = extract_prompts(masks)
    np.testing.assert_array_equal(prompts.valid, [True, False])
    np.testing.assert_array_equal(prompts.boxes[1], [3, 3, 5, 4])
    assert select_prompt(prompts, 0, ("neg_points",)).empty


def test_border_and_single_pixel():
    masks = np.zeros((2, 6, 9), bool)
    masks[0, :, 5:] = True
    masks[1, 5, 0] = True
    prompts = extract_prompts(masks)
    np.testing.assert_array_equal(prompts.boxes, [[5, 0, 8, 5], [0, 5, 0, 5]])
    np.testing.assert_array_equal(prompts.centroids, [[6, 2], [0, 5]])


def test_no_class_at_all():
    prompts = extract_prompts(np.zeros((3, 4, 5), bool))
    assert not prompts.valid.any()
    assert np.isnan(prompts.boxes).all()
