"""The study's tables against pandas and SciPy on made-up results."""
import re

import numpy as np
import pandas
import pytest
from scipy.stats import bootstrap, wilcoxon

from scripts.study.tables import (
    comparison,
    estimates,
    gain,
    image_scores,
    mean_over_seeds,
    p_value,
    paper_table,
    rename_methods,
)

LEVELS = {"initial": 60, "sam": 66, "raw": 58}


@pytest.fixture
def rows() -> list[dict[str, str]]:
    """Twelve images, of two classes, the second of which not all show; n = 5, 20, 43, two seeds; raw lacks n = 20."""
    rng = np.random.default_rng(0)
    return [{"method": method, "n": str(n), "seed": str(seed), "image": f"image{image}", "class": label,
             "dice": f"{level + n / 10 + 3 * rng.normal():.4f}", "surface_dice": "30.5" if method == "sam" else ""}
            for n in (5, 20, 43) for seed in (1, 2) for method, level in LEVELS.items() if (method, n) != ("raw", 20)
            for image in range(12) for label in ("Radius", "Ulna")[:1 + image % 2]]


@pytest.fixture
def frame(rows) -> pandas.Series:
    """Mean over classes by method, n, seed, image."""
    frame = pandas.DataFrame(rows).astype({"n": int, "dice": float})
    return frame.groupby(["method", "n", "seed", "image"])["dice"].mean()


def test_the_papers_table_equals_pandas(rows, frame):
    table = paper_table(image_scores(rows), [5, 20, 43, 50])
    assert table[0] == ["method", "n = 5", "n = 20", "n = 43", "n = 50"]
    assert [row[0] for row in table[1:]] == list(LEVELS)
    for method, *cells in table[1:]:
        for n, cell in zip((5, 20, 43, 50), cells, strict=True):
            if n == 50 or (method, n) == ("raw", 20):
                assert cell == ""
                continue
            dice = frame[method, n]
            assert cell.removesuffix("*") == f"{dice.mean():.2f} ± {dice.std():.2f}"
            assert cell.endswith("*") == (method == "sam")


def test_a_gain_has_the_bootstrap_interval_of_its_images_and_seeds():
    rng = np.random.default_rng(0)
    images = [f"image{number}" for number in range(40)]
    baseline = {("1", image): 50.0 for image in images}
    scores = {key: 50 + value for key, value in zip(baseline, rng.normal(3, 2, 40), strict=True)}
    gains = np.array([scores[key] - 50 for key in scores])
    mean, low, high = map(float, re.findall(r"[-+][\d.]+", gain(baseline, scores)))
    expected = bootstrap((gains,), np.mean, method="percentile", rng=1).confidence_interval
    assert (mean, low, high) == pytest.approx((gains.mean(), *expected), abs=0.12)
    # a second seed that gains nothing: drawing the same seed twice, half of the time, widens the interval
    other = {**scores, **{("2", image): 50.0 for image in images}}
    both = {**baseline, **{("2", image): 50.0 for image in images}}
    mean, low, high = map(float, re.findall(r"[-+][\d.]+", gain(both, other)))
    assert mean == pytest.approx(gains.mean() / 2, abs=0.01) and low == 0 and high > gains.mean() - 0.5
    assert gain(baseline, baseline) == gain({}, scores) == ""


def test_the_papers_table_with_p_values(rows, frame):
    table = paper_table(image_scores(rows), [43, 20], baseline="initial")
    assert table[0] == ["method", "n = 43", "p, n = 43", "n = 20", "p, n = 20"]
    for n, column in ((43, 2), (20, 4)):
        gains = (frame["sam", n] - frame["initial", n]).groupby("image").mean()
        assert [row[column] for row in table[1:3]] == ["", f"{wilcoxon(gains).pvalue:.2g}"]
    assert table[3][4] == ""  # raw at 20


def test_equally_good_methods_are_all_best_and_one_image_has_no_deviation():
    scores = {("a", 5): {("1", "x"): 50.0}, ("b", 5): {("1", "x"): 50.0}, ("c", 5): {("1", "x"): 40.0}}
    assert paper_table(scores, [5])[1:] == [["a", "50.00*"], ["b", "50.00*"], ["c", "40.00"]]


def test_the_comparison_equals_pandas(rows, frame):
    table = comparison([row for row in rows if row["n"] == "43"], "initial")
    assert table[0] == ["method", "mean", "std", "images", "p", "gain [95 % interval]", "surface mean",
                        "surface std"]
    for method, mean, std, count, p, gained, *surface in table[1:]:
        dice = frame[method, 43]
        gains = (dice - frame["initial", 43]).groupby("image").mean()
        assert (mean.removesuffix("*"), std, count) == (f"{dice.mean():.2f}", f"{dice.std():.2f}", "24")
        assert p == ("" if method == "initial" else f"{wilcoxon(gains).pvalue:.2g}")
        total = (dice - frame["initial", 43]).mean()
        assert gained.split(" ")[0] == ("" if method == "initial" else f"{total:+.2f}")
        assert surface == (["30.50", "0.00"] if method == "sam" else ["", ""])
        assert mean.endswith("*") == (method == "sam")
    without = comparison([{**row, "surface_dice": ""} for row in rows], "initial")
    assert without[0] == table[0][:6]


def test_the_table_of_estimates_equals_pandas(rows):
    rng = np.random.default_rng(1)
    rows = [{**row, "estimated_dice": f"{float(row['dice']) + 5 + 4 * rng.normal():.4f}"} for row in rows
            if row["n"] == "43"]
    rows[3]["estimated_dice"] = rows[5]["dice"] = ""
    _, *table = estimates([*rows, {**rows[0], "method": "random_walk", "estimated_dice": ""},
                           {**rows[0], "method": "one mask"}])
    assert [row[0] for row in table] == [*LEVELS, "one mask"] and table[-1][1:4] == ["1", "", ""]
    frame = pandas.DataFrame(rows).replace("", np.nan).dropna(subset=["dice", "estimated_dice"])
    frame[["dice", "estimated_dice"]] = frame[["dice", "estimated_dice"]].astype(float)
    for (_, masks, over_masks, over_images, error), method in zip(table, LEVELS, strict=False):
        of_method = frame[frame.method == method]
        images = of_method.groupby(["seed", "image"])[["dice", "estimated_dice"]].mean()
        seeds = [of_seed.dice.corr(of_seed.estimated_dice) for _, of_seed in images.groupby("seed")]
        assert masks == str(len(of_method))
        assert over_masks == f"{of_method.dice.corr(of_method.estimated_dice):.2f}"
        assert over_images == f"{np.mean(seeds):.2f}"
        assert error == f"{(of_method.estimated_dice - of_method.dice).mean():+.2f}"


def test_only_images_that_both_have_are_compared():
    baseline = {("1", image): float(number) for number, image in enumerate("abcdefgh")}
    scores = {("1", image): 2.0 * number + 1 for number, image in enumerate("cdefghij", 2)}
    gains = [scores["1", image] - baseline["1", image] for image in "cdefgh"]
    assert p_value(baseline, scores) == f"{wilcoxon(gains).pvalue:.2g}"
    assert p_value({}, scores) == p_value(baseline, baseline) == ""
    assert mean_over_seeds({("1", "a"): 1.0, ("2", "a"): 4.0, ("1", "b"): 7.0}) == {"a": 2.5, "b": 7.0}


def test_methods_take_the_papers_names(rows):
    renamed = rename_methods(rows, {"initial": "U-Net", "sam": "U-Net + SAM"})
    assert [row[0] for row in paper_table(image_scores(renamed), [5])[1:]] == ["U-Net", "U-Net + SAM", "raw"]
    assert rows[0]["method"] == "initial"
    with pytest.raises(ValueError, match="one title"):
        rename_methods(rows, {"initial": "U-Net", "raw": "U-Net"})
