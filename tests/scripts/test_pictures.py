"""Where pictures of prompts and pseudo labels show what, on images that are not square."""
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from scripts.study import pictures
from scripts.study.pictures import overlays, panels, prompts_figure, pseudo_label_grid, sample_pseudo_labels
from segment_anything.refinement.prompts import PROMPTS, ClassPrompt, extract_prompts
from tests.scripts.test_figures import check_nothing_is_cut_off, legend_of
from utils.errors import InputError
from utils.mask_store import MaskStore, MaskWriter

LABELS = ["Radius", "Ulna", "Os lunatum", "Os pisiforme"]
SETS = (("box",), ("pos_points", "neg_points"))


@pytest.fixture
def masks() -> np.ndarray:
    """(4, 20, 30): three classes, the second lies wholly in the first; the last is empty."""
    masks = np.zeros((4, 20, 30), bool)
    masks[0, 2:11, 3:10], masks[1, 4:7, 5:7], masks[2, 12:17, 20:29] = True, True, True
    return masks


def draw_prompts(masks: np.ndarray, sets=SETS, size=(40, 90)) -> Figure:
    grey = np.full(size, 100, np.uint8)
    estimates = np.array([0.9, np.nan, 0.75, np.nan])
    prompts = extract_prompts(masks)
    return prompts_figure(grey, masks * 0.9, masks, prompts, sets, masks[:, ::-1], estimates, LABELS, "image 7")


def of_class(figure: Figure, label: str) -> list:
    """The axes of a class: U-Net, cleaned, SAM."""
    return next(part.axes for part in figure.subfigs if part.axes and part.axes[0].get_ylabel() == label)


def test_prompts_stand_where_they_are_in_the_image(masks):
    figure = draw_prompts(masks)
    check_nothing_is_cut_off(figure)
    assert [part.axes[0].get_ylabel() for part in figure.subfigs if part.axes] == LABELS[:3]
    assert figure.get_suptitle() == "image 7\nfirst pass: box; second pass: positive point, negative points"
    assert legend_of(figure) == ["box", "positive point", "negative points"]
    unet, cleaned, sam = of_class(figure, "Os lunatum")
    assert [axes.get_title() for axes in (unet, cleaned, sam)] == ["U-Net", "cleaned, prompts", "SAM, estimate 75.0 %"]
    box, = cleaned.patches  # three times as wide, twice as high as the masks; edges of pixels lie at -0.5
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (3 * 20 - 0.5, 2 * 12 - 0.5, 3 * 9, 2 * 5)
    positive, negative = cleaned.lines
    assert to_hex(positive.get_color()).upper() == pictures.POSITIVE["color"]
    np.testing.assert_allclose(positive.get_xydata(), [[3 * 24.5 - 0.5, 2 * 14.5 - 0.5]])
    x, y = extract_prompts(masks).centroids[0]
    np.testing.assert_allclose(negative.get_xydata(), [[3 * (x + 0.5) - 0.5, 2 * (y + 0.5) - 0.5]])
    for axes, mask in ((unet, masks[2]), (cleaned, masks[2]), (sam, masks[2, ::-1])):
        colored = (axes.images[0].get_array() != 100).any(axis=-1)
        np.testing.assert_array_equal(colored, mask.repeat(2, axis=0).repeat(3, axis=1))


def test_a_class_without_prompt_says_so(masks):
    _, cleaned, sam = of_class(draw_prompts(masks), "Ulna")
    assert [axes.get_title() for axes in (cleaned, sam)] == ["cleaned, no prompt", "SAM, not asked"]
    assert not cleaned.patches and not cleaned.lines


def test_only_the_prompts_of_the_sets_are_drawn(masks):
    figure = draw_prompts(masks, (("box",), ()))
    assert legend_of(figure) == ["box"] and figure.get_suptitle().endswith("first pass: box")
    assert not of_class(figure, "Radius")[1].lines
    cleaned = of_class(draw_prompts(masks, (("pos_points",), ("pos_points",))), "Radius")[1]
    assert len(cleaned.lines) == 1 and not cleaned.patches


def test_a_prompt_that_was_added_is_drawn(masks, monkeypatch):
    """As docs/extending.md has it, which names no other file to touch."""
    monkeypatch.setitem(PROMPTS, "corner", lambda prompts, channel: ClassPrompt(
        points=prompts.boxes[[channel], :2], labels=np.array([1])))
    figure = draw_prompts(masks, (("corner",), ("neg_points",)))
    assert figure.get_suptitle().endswith("first pass: corner; second pass: negative points")
    assert legend_of(figure) == ["positive point", "negative points"]
    positive, _ = of_class(figure, "Os lunatum")[1].lines
    np.testing.assert_allclose(positive.get_xydata(), [[3 * 20.5 - 0.5, 2 * 12.5 - 0.5]])


def test_many_classes_have_room():
    masks = np.zeros((17, 60, 35), bool)
    for channel in range(17):
        masks[channel, 3 * channel:3 * channel + 2, 10:30] = True
    labels = [f"Ossa metacarpalia {channel}" for channel in range(17)]
    figure = prompts_figure(np.zeros((60, 35), np.uint8), masks * 1.0, masks, extract_prompts(masks), SETS, masks,
                            np.full(17, 0.8), labels, "0054_0000000054_01_WRI-R1_M012")
    check_nothing_is_cut_off(figure)
    assert len([part for part in figure.subfigs if part.axes]) == 17


def test_an_image_without_any_class_is_an_empty_picture(masks):
    figure = draw_prompts(masks & False)
    check_nothing_is_cut_off(figure)
    assert not figure.axes


@pytest.mark.parametrize("columns", [1, 6])
def test_panels_have_a_legend_of_all_classes(masks, columns):
    grey = np.full((1000, 700), 100, np.uint8)
    row = panels(grey, {f"the method number {column}\n71.2 %": masks for column in range(columns)})
    assert [caption for caption, _ in row][:2] == ["radiograph", "the method number 0\n71.2 %"]
    assert {picture.shape for _, picture in row} == {(640, 448, 3)}
    figure = overlays({"best": row, "worst": row}, LABELS, "a title that is longer than the figure is wide " * 2)
    check_nothing_is_cut_off(figure)
    assert legend_of(figure) == LABELS
    captions = [axes.get_title() for axes in figure.axes]
    assert len(captions) == 2 * (1 + columns) and captions[1] == "the method number 0\n71.2 %"


def test_a_pseudo_label_is_chosen_that_shows_its_class(masks, tmp_path):
    others = np.zeros_like(masks)
    others[1] = True
    with MaskWriter(tmp_path / "masks.h5", LABELS, {}) as writer:
        writer.write_all([("a", masks), ("b", others), ("c", others)])
    store = MaskStore(tmp_path / "masks.h5", LABELS)
    chosen = [sample_pseudo_labels(store, LABELS, seed) for seed in range(20)]
    assert all(list(stems) == LABELS[:3] for stems in chosen)
    assert {(stems["Radius"], stems["Os lunatum"]) for stems in chosen} == {("a", "a")}
    assert {stems["Ulna"] for stems in chosen} == {"a", "b", "c"}
    assert sample_pseudo_labels(store, LABELS, 3) == chosen[3]


def test_masks_without_any_class_are_told(masks, tmp_path):
    with MaskWriter(tmp_path / "masks.h5", LABELS, {}) as writer:
        writer.write_all([("a", masks & False), ("b", masks & False)])
    with pytest.raises(InputError, match=r"masks\.h5: none of its 2 masks shows a class.* train .*for longer"):
        sample_pseudo_labels(MaskStore(tmp_path / "masks.h5", LABELS), LABELS, 0)


def test_pseudo_labels_stand_with_their_estimates(masks):
    grey = np.full((40, 90), 100, np.uint8)
    figure = pseudo_label_grid({"Radius": ("0054_0000000054_01_WRI-R1_M012", grey, masks[0], 0.934),
                                "Ulna": ("image8", grey[:, :60], masks[1, :, :20], np.nan),
                                "Os lunatum": ("image9", grey, masks[2], None)}, "data set, model")
    check_nothing_is_cut_off(figure)
    _, ulna, _ = grid = [part.axes[0] for part in figure.subfigs if part.axes]
    assert [axes.get_title() for axes in grid] == ["Radius\nestimate 93.4 %", "Ulna\nnot asked", "Os lunatum"]
    assert ulna.get_xlabel() == "image8"
    colored = (ulna.images[0].get_array() != 100).any(axis=-1)
    np.testing.assert_array_equal(colored, masks[1, :, :20].repeat(2, axis=0).repeat(3, axis=1))
