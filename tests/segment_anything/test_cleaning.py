"""Mask cleaning against SciPy's labeling, morphology against SciPy and scikit-image with elements drawn here."""
import numpy as np
import pytest
import scipy.ndimage
import skimage.morphology

from segment_anything.refinement.cleaning import (
    ELEMENTS,
    OPERATIONS,
    apply_morphology,
    clean_masks,
    select_components,
    structuring_element,
)

CENTERED = tuple(element for element in ELEMENTS if element != "square")


def scipy_clean(probabilities: np.ndarray, selection: str) -> np.ndarray:
    result = np.zeros(probabilities.shape, bool)
    for channel, probability in enumerate(probabilities):
        components, count = scipy.ndimage.label(probability > 0.5, structure=np.ones((3, 3)))
        if not count:
            continue
        of_each = range(1, count + 1)
        score = (scipy.ndimage.mean(probability.astype(np.float64), components, of_each)
                 if selection == "highest_probability" else scipy.ndimage.sum(components > 0, components, of_each))
        result[channel] = components == 1 + int(np.argmax(score))
    return result


@pytest.mark.parametrize("selection", ["highest_probability", "largest"])
@pytest.mark.parametrize("smoothing", [0, 1, 3])
def test_cleaning_equals_scipy(selection, smoothing):
    rng = np.random.default_rng(smoothing)
    for height, width in [(37, 23), (16, 64), (1, 9), (50, 50)]:
        noise = scipy.ndimage.gaussian_filter(rng.random((6, height, width)), (0, smoothing, smoothing))
        spread = np.ptp(noise, axis=(1, 2), keepdims=True)
        probabilities = ((noise - noise.min(axis=(1, 2), keepdims=True)) / spread).astype(np.float32)
        probabilities[2] = 0.3
        np.testing.assert_array_equal(clean_masks(probabilities, selection), scipy_clean(probabilities, selection))


@pytest.mark.parametrize("selection", ["highest_probability", "largest"])
def test_of_equal_components_the_first_in_row_major_order_stays(selection):
    rng = np.random.default_rng(0)
    probabilities = np.where(rng.random((200, 9, 13)) > 0.75, 0.75, 0.25).astype(np.float32)
    np.testing.assert_array_equal(clean_masks(probabilities, selection), scipy_clean(probabilities, selection))


def test_diagonal_neighbors_are_connected_and_half_is_background():
    probabilities = np.zeros((1, 4, 5), np.float32)
    probabilities[0, [0, 1], [0, 1]] = 0.9
    probabilities[0, 3, 4] = 0.5
    expected = probabilities > 0.6
    np.testing.assert_array_equal(clean_masks(probabilities), expected)


def test_no_selection_keeps_every_component_and_input_stays_unchanged():
    probabilities = np.random.default_rng(1).random((3, 8, 12)).astype(np.float32)
    before = probabilities.copy()
    np.testing.assert_array_equal(clean_masks(probabilities, "none"), probabilities > 0.5)
    assert clean_masks(probabilities).sum() < (probabilities > 0.5).sum()
    np.testing.assert_array_equal(probabilities, before)


def element_by_definition(element: str, radius: int) -> np.ndarray:
    reach = radius + radius // 2 if element == "star" and radius > 1 else radius
    y, x = np.mgrid[-reach:reach + 1, -reach:reach + 1]
    square = np.maximum(abs(x), abs(y)) <= radius
    inside = {"centered_square": square, "disk": x**2 + y**2 <= radius**2, "diamond": abs(x) + abs(y) <= radius,
              "star": square | (abs(x) + abs(y) <= reach)}
    return inside[element]


@pytest.mark.parametrize("element", CENTERED)
@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_structuring_elements(element, radius):
    np.testing.assert_array_equal(structuring_element(element, radius), element_by_definition(element, radius))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("element", CENTERED)
def test_morphology_equals_scipy_on_masks_that_touch_the_border(operation, element):
    masks = np.random.default_rng(3).random((3, 31, 22)) > 0.4
    for radius in (1, 3):
        footprint = element_by_definition(element, radius)

        def dilate(mask, footprint=footprint):
            return scipy.ndimage.binary_dilation(mask, footprint)

        def erode(mask, footprint=footprint):
            return scipy.ndimage.binary_erosion(mask, footprint, border_value=1)

        chains = {"dilation": [dilate], "erosion": [erode], "opening": [erode, dilate], "closing": [dilate, erode]}
        for mask, changed in zip(masks, apply_morphology(masks, operation, element, radius), strict=True):
            for step in chains[operation]:
                mask = step(mask)
            np.testing.assert_array_equal(changed, mask)


def test_erosion_equals_scikit_image_at_the_border():
    masks = np.ones((1, 12, 17), bool)
    masks[0, 5, 5] = False
    footprint = skimage.morphology.disk(2)
    expected = skimage.morphology.erosion(masks[0], footprint, mode="ignore")
    np.testing.assert_array_equal(apply_morphology(masks, "erosion", "disk", 2)[0], expected)


def move_window(mask: np.ndarray, before: int, side: int, combine: str) -> np.ndarray:
    """`all` or `any` of the pixels in a window of `side` pixels that begins `before` pixels before each one."""
    result = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        top, left = y - before, x - before
        result[y, x] = getattr(mask[max(0, top):top + side, max(0, left):left + side], combine)()
    return result


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_the_released_square_is_as_wide_as_its_radius(side):
    """As kornia applies scikit-image's square of an even side: what was eroded grows back where it was."""
    rng = np.random.default_rng(side)
    masks = np.stack([rng.random((23, 34)) > threshold for threshold in (0.9, 0.5, 0.02)])
    eroded = [move_window(mask, side // 2, side, "all") for mask in masks]
    dilated = [move_window(mask, (side - 1) // 2, side, "any") for mask in masks]
    np.testing.assert_array_equal(apply_morphology(masks, "erosion", "square", side), eroded)
    np.testing.assert_array_equal(apply_morphology(masks, "dilation", "square", side), dilated)
    footprint = np.ones((side, side))
    padded = np.pad(masks, ((0, 0), (side, side), (side, side)))  # scikit-image opens otherwise at the border
    for mask, opened in zip(padded, apply_morphology(padded, "opening", "square", side), strict=True):
        np.testing.assert_array_equal(opened, skimage.morphology.opening(mask, footprint, mode="ignore"))
    for name, ours in [("dilation", dilated), ("closing", apply_morphology(masks, "closing", "square", side))]:
        expected = [getattr(skimage.morphology, name)(mask, footprint, mode="ignore") for mask in masks]
        np.testing.assert_array_equal(ours, expected)


def test_components_are_selected_of_masks_that_were_changed_before():
    """An erosion parts one component in two; then one of the parts is kept."""
    probabilities = np.zeros((1, 9, 16), np.float32)
    probabilities[0, 2:7, 1:6], probabilities[0, 2:7, 9:15], probabilities[0, 4, 6:9] = 0.9, 0.6, 0.6
    eroded = apply_morphology(probabilities > 0.5, "erosion", "centered_square", 1)
    for selection, columns in [("highest_probability", slice(2, 5)), ("largest", slice(10, 14))]:
        expected = np.zeros((1, 9, 16), bool)
        expected[0, 3:6, columns] = True
        np.testing.assert_array_equal(select_components(eroded, probabilities, selection), expected)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_radius_zero_is_the_identity(operation):
    masks = np.random.default_rng(4).random((2, 9, 7)) > 0.5
    for element in ELEMENTS:
        np.testing.assert_array_equal(apply_morphology(masks, operation, element, 0), masks)
