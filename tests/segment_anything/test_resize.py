"""Our resizing against that of the installed package."""
import numpy as np
import pytest

from segment_anything.resize import fit_longest_side, resize_longest_side
from segment_anything.utils.transforms import ResizeLongestSide


@pytest.mark.parametrize("size", [(37, 90), (90, 37), (64, 64), (130, 41), (700, 311), (1500, 1024)])
@pytest.mark.parametrize("longest_side", [64, 96, 1024])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_same_pixels_as_the_package(size, longest_side, channels):
    image = np.random.default_rng(0).integers(0, 256, (*size, *channels), np.uint8)
    resized = resize_longest_side(image, longest_side)
    assert resized.dtype == np.uint8 and max(resized.shape) == longest_side
    np.testing.assert_array_equal(resized, ResizeLongestSide(longest_side).apply_image(image))


def test_same_sizes_as_the_package():
    sizes = np.random.default_rng(0).integers(1, 3000, (20_000, 3)).tolist()
    sizes += [[side, other, 2 * side] for side in range(1, 90) for other in range(1, 90)]  # many halves to round
    for height, width, longest_side in sizes:
        expected = ResizeLongestSide.get_preprocess_shape(height, width, longest_side)
        assert fit_longest_side((height, width), longest_side) == expected
