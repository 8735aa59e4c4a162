import numpy as np
import pytest
from skimage.color import deltaE_cie76, rgb2lab

from utils.overlay import add_class_legend, add_legend, class_colors, overlay, shrink, side_by_side, stack, to_grey


def test_classes_are_drawn_where_they_are_and_in_their_colors():
    grey = np.full((20, 30), 100, np.uint8)
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 2:10, 3:12], masks[2, 5:18, 15:28] = True, True
    picture = overlay(grey, masks)
    changed = (picture != 100).any(axis=-1)
    np.testing.assert_array_equal(changed, masks.any(axis=0))
    colors = class_colors(3)
    assert len(np.unique(colors, axis=0)) == 3
    np.testing.assert_array_equal(picture[2, 3], colors[0])  # the outline is opaque
    np.testing.assert_array_equal(picture[10, 20], (0.6 * 100 + 0.4 * colors[2]).astype(np.uint8))
    assert (grey == 100).all()
    coarse = (overlay(grey, masks[:1, ::2, 1::2]) != 100).any(axis=-1)
    assert coarse[2:10, 4:12].all() and not coarse[12:].any()


def test_grey_stretches_any_range():
    image = np.linspace(-1.5, 2.9, 12, dtype=np.float32).reshape(3, 4)
    grey = to_grey(image)
    assert grey.dtype == np.uint8 and grey[0, 0] == 0 and grey[-1, -1] == 255
    assert (np.diff(grey.ravel().astype(int)) > 0).all()


def test_panels_stand_side_by_side():
    panels = [np.full((24, 16, 3), value, np.uint8) for value in (50, 200)]
    joined = side_by_side(panels, ["left", "right"], height=48)
    assert joined.shape == (48 + 32, 2 * (32 + 8), 3)
    assert joined[60, 20, 0] == 50 and joined[60, 60, 0] == 200
    stacked = stack([joined, joined[:, :50]])
    assert stacked.shape == (160, 80, 3)
    assert stacked[60, 60, 0] == 200 and stacked[140, 60, 0] == 0


@pytest.mark.parametrize("title", ["Zähne №7", "a title that no letters are small enough for, so it is cut"])
def test_titles_stay_above_their_panel(title):
    joined = side_by_side([np.zeros((40, 25, 3), np.uint8)] * 2, [title, ""], height=160)
    text = (joined[:28] > 128).any(axis=(0, 2))
    assert text[:54].any() and not text[104:].any()
    assert not joined[28:].any()


def test_all_classes_are_in_the_legend():
    shown = add_class_legend(np.zeros((200, 30, 3), np.uint8), ["a", "b", "c"])
    assert all((shown[:, 30:] == color).all(axis=-1).sum() >= 100 for color in class_colors(3))


@pytest.mark.parametrize(("count", "least"), [(17, 35), (32, 25)])
def test_colors_differ_from_each_other_and_from_grey(count, least):
    colors = class_colors(count)
    np.testing.assert_array_equal(colors[:5], class_colors(5))
    lab = rgb2lab(colors / 255)
    greys = rgb2lab(np.repeat(np.linspace(0, 1, 256)[:, None], 3, axis=1))
    distances = deltaE_cie76(lab[:, None], lab[None])
    assert distances[~np.eye(count, dtype=bool)].min() > least
    assert deltaE_cie76(lab[:, None], greys[None]).min() > 20
    assert len(class_colors(0)) == 0


def test_other_colors_may_be_given():
    masks = np.ones((1, 4, 6), bool)
    picture = overlay(np.zeros((4, 6), np.uint8), masks, np.array([[10, 20, 30]], np.uint8))
    np.testing.assert_array_equal(picture[0, 0], [10, 20, 30])


def test_large_images_shrink_in_their_shape():
    image = np.repeat(np.arange(300, dtype=np.uint8)[None], 90, axis=0)
    assert shrink(image, 100).shape == (30, 100)
    assert shrink(image, 300) is image
    assert shrink(image[:1], 100).shape == (1, 100)


@pytest.mark.parametrize("height", [50, 300])
def test_a_legend_names_every_color_beside_the_picture(height):
    picture, colors = np.full((height, 40, 3), 90, np.uint8), class_colors(9)
    shown = add_legend(picture, [(f"Os längeres {number}", color) for number, color in enumerate(colors)])
    np.testing.assert_array_equal(shown[:, :40], picture)
    strip = shown[:, 40:]
    assert all((strip == color).all(axis=-1).sum() >= 100 for color in colors)
    assert (strip == 255).all(axis=-1).sum() > 9 * 20  # text
