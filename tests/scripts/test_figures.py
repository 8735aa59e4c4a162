"""What the figures of measurements show, read back from their artists, and that nothing in them is cut off."""
import matplotlib
import numpy as np
import optuna
import pytest
from matplotlib.figure import Figure

from scripts.study import figures
from scripts.study.figures import draw, save_figure, search_figures
from scripts.study.tables import Scores

METHODS = ["nnU-Net BCE", "SAM ViT + LR-ASPP", "U-Net", "SAM refined", "MedSAM refined", "Random Walk refined",
           "Raw pseudo labels", "SAM refined pseudo labels", "Mean Teacher", "Reliable Mean Teacher"]
OF_SAM = ["SAM refined", "MedSAM refined", "SAM refined pseudo labels", "Reliable Mean Teacher"]
BONES = [f"Ossa metacarpalia {number}" for number in range(17)]
TITLE = "data set of a long name, SAM type vit_h, 43 labeled images, made with the SAM that lies in the project"


@pytest.fixture(scope="module")
def scores() -> Scores:
    """Of nine images in two trainings; the last method lacks n = 20."""
    rng = np.random.default_rng(0)
    images = [(seed, f"image{image}") for seed in "12" for image in range(9)]
    return {(method, n): {image: 60 + 2 * number + rng.normal() for image in images}
            for number, method in enumerate(METHODS) for n in (5, 43, 20) if (method, n) != (METHODS[-1], 20)}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """Seven masks of each class; U-Net has no estimates."""
    rng = np.random.default_rng(0)
    return [{"method": method, "class": label, "dice": f"{rng.uniform(50, 90)}",
             "estimated_dice": "" if method == "U-Net" else f"{rng.uniform(60, 100)}"}
            for method in ("U-Net", *OF_SAM) for label in BONES for _ in range(7)]


def check_nothing_is_cut_off(figure: Figure) -> None:
    figure.draw_without_rendering()
    inches = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert inches.x0 > -0.02 and inches.y0 > -0.02 and inches.x1 < width + 0.02 and inches.y1 < height + 0.02


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_box_plots_over_n_have_the_quartiles_and_means(scores):
    figure = draw(TITLE, figures.box_plot_over_n, scores, width=12)
    check_nothing_is_cut_off(figure)
    axes, = figure.axes
    assert legend_of(figure) == METHODS
    assert [text.get_text() for text in axes.get_xticklabels()] == ["5", "20", "43"]
    lines = [line for line in axes.lines if line.get_markersize() == 4]
    for number, method in enumerate(METHODS):
        for place, n in enumerate((5, 20, 43)):
            box = axes.patches[3 * number + place].get_path().get_extents()
            x, mean = lines[number].get_xydata()[place]
            if (method, n) not in scores:
                assert np.isnan(mean)
                continue
            values = list(scores[method, n].values())
            np.testing.assert_allclose([box.y0, box.y1], np.quantile(values, [0.25, 0.75]))
            assert mean == pytest.approx(np.mean(values))
            assert box.x0 < x < box.x1 and abs(x - place) < 0.4


def test_lines_over_n_have_the_means(scores):
    figure = draw(TITLE, figures.dice_over_n, scores)
    check_nothing_is_cut_off(figure)
    for line, method in zip(figure.axes[0].lines, METHODS, strict=True):
        numbers = [n for n in (5, 20, 43) if (method, n) in scores]
        assert list(line.get_xdata()) == numbers
        np.testing.assert_allclose(line.get_ydata(), [np.mean(list(scores[method, n].values())) for n in numbers])


def test_the_error_of_the_estimate_is_estimate_minus_dice(rows):
    figure = draw(TITLE, figures.estimate_error, rows, width=12)
    check_nothing_is_cut_off(figure)
    axes, = figure.axes
    assert legend_of(figure) == OF_SAM
    assert [text.get_text() for text in axes.get_xticklabels()] == BONES
    errors = [float(row["estimated_dice"]) - float(row["dice"]) for row in rows
              if (row["method"], row["class"]) == ("MedSAM refined", BONES[3])]
    box = axes.patches[len(BONES) + 3].get_path().get_extents()
    np.testing.assert_allclose([box.y0, box.y1], np.quantile(errors, [0.25, 0.75]))


def test_the_histogram_has_shares_of_the_masks_that_sam_was_asked_for():
    figure = draw("", figures.estimate_histogram, {"sam": [0, 4.9, 97, 100, np.nan], "medsam": [50, np.nan]})
    assert sorted(legend_of(figure)) == ["medsam, 1 masks", "sam, 4 masks"]
    of_sam = next(patch for patch in figure.axes[0].patches if patch.get_label().startswith("sam"))
    heights = of_sam.get_xy()[:, 1]
    assert heights.max() == 50 and heights[1] == 50 and heights[-2] == 50 and heights[3] == 0


def test_the_agreement_is_sorted_and_counted():
    agreements = np.random.default_rng(0).uniform(size=50)
    figure = draw(TITLE, figures.agreement_curve, [*agreements, np.nan], 0.85)
    check_nothing_is_cut_off(figure)
    curve, threshold = figure.axes[0].lines
    np.testing.assert_array_equal(curve.get_ydata(), sorted(agreements))
    assert curve.get_xdata()[[0, -1]].tolist() == [0, 1] and set(threshold.get_ydata()) == {0.85}
    assert legend_of(figure) == ["50 images", f"{sum(a >= 0.85 for a in agreements)} images at 0.85 or above"]
    assert len(draw("", figures.agreement_curve, agreements).axes[0].lines) == 1


def test_the_other_figures_show_all_text(scores, rows):
    for figure in (draw(TITLE, figures.box_plot, scores, METHODS, 43),
                   draw(TITLE, figures.cumulative, scores, METHODS, 5),
                   draw(TITLE, figures.per_class, rows, ["U-Net", *OF_SAM], width=12),
                   draw(TITLE, figures.estimated_dice, rows)):
        check_nothing_is_cut_off(figure)


def test_estimates_are_compared_where_there_are_some(rows):
    figure = draw("", figures.estimated_dice, rows)
    assert [label.split(",")[0] for label in legend_of(figure)] == OF_SAM
    pairs = [(float(row["dice"]), float(row["estimated_dice"])) for row in rows if row["method"] == "SAM refined"]
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_xydata(), pairs)


def test_every_method_looks_different():
    looks = figures.styles([str(number) for number in range(24)])
    assert len({(color, line) for color, line, _ in looks.values()}) == len({*looks.values()}) == 24


def test_a_figure_is_saved_twice_under_its_whole_name(tmp_path, scores):
    save_figure(tmp_path / "new" / "image.v1", draw("title", figures.box_plot, scores, METHODS[:2], 5))
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"image.v1.png", "image.v1.pdf"}
    assert (tmp_path / "new" / "image.v1.pdf").read_bytes().startswith(b"%PDF")
    assert matplotlib.image.imread(tmp_path / "new" / "image.v1.png").std() > 0.01


@pytest.mark.parametrize("trials", [2, 40])
def test_a_search_is_shown(trials):
    grid = {"prompt1st": ["box", "pos_points neg_points"], "prompt2nd": ["", "pos_points"],
            "morphology_radius": [*range(9)]}

    def gain(trial: optuna.Trial) -> float:
        options = {name: trial.suggest_categorical(name, values) for name, values in grid.items()}
        return options["morphology_radius"] - len(options["prompt1st"])

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.GridSampler(grid, seed=0))
    study.optimize(gain, n_trials=trials)
    before = matplotlib.rcParams.copy()
    drawn = search_figures(study)
    assert matplotlib.rcParams == before and not matplotlib.pyplot.get_fignums()
    assert list(drawn) == ["search_history", "search_slices", "search_contours"]
    points = drawn["search_history"].axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 1], [trial.value for trial in study.trials])
    for figure in drawn.values():
        check_nothing_is_cut_off(figure)
    assert len(drawn["search_slices"].axes) >= len(grid) and len(drawn["search_contours"].axes) >= len(grid) ** 2
