"""Tables in all formats, read back by other readers; the images that are shown of many."""
import csv
import re

import numpy as np
import pytest

from utils.tables import best_median_worst, read_rows, write_rows, write_table

ROWS = [["method", "n = 5", "p_value"], ["U-Net & SAM_x", "70.15 ± 3.20", "0.01"], ["U-Net", "75.50 ± 10.25*", ""]]


def read_latex(text: str) -> list[list[str]]:
    """The cells between \\toprule and \\bottomrule."""
    body = re.search(r"\\toprule(.*)\\bottomrule", text, re.DOTALL).group(1).replace("\\midrule", "")
    lines = [line for line in body.replace("\\&", "AND").split("\\\\") if line.strip()]
    return [[cell.strip().replace("AND", "&") for cell in line.split("&")] for line in lines]


def test_a_table_is_the_same_in_all_formats(tmp_path):
    write_table(tmp_path / "new" / "table", ROWS, "The title\na notice")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"table.txt", "table.csv", "table.tex"}
    with (tmp_path / "new" / "table.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [*ROWS[:2], ["U-Net", "75.50 ± 10.25", ""]]
    latex = (tmp_path / "new" / "table.tex").read_text(encoding="utf-8")
    assert r"\begin{tabular}{lrr}" in latex
    assert read_latex(latex) == [["method", "n = 5", r"p\_value"], [r"U-Net & SAM\_x", r"70.15 $\pm$ 3.20", "0.01"],
                                 ["U-Net", r"\textbf{75.50 $\pm$ 10.25}", ""]]
    text = (tmp_path / "new" / "table.txt").read_text(encoding="utf-8").split("\n")
    assert text[:3] == ["The title", "a notice", ""] and text[-2] == "* best"
    assert [re.split(r"  +", line) for line in text[3:6]] == [*ROWS[:2], ROWS[2][:2]]
    assert text[4].index("20") == text[5].index("25")  # decimals below each other


def test_a_table_without_marks_explains_none(tmp_path):
    write_table(tmp_path / "table", [["method", "mean"], ["a", "1"]], "Title")
    assert "best" not in (tmp_path / "table.txt").read_text() and "textbf" not in (tmp_path / "table.tex").read_text()


def test_what_is_written_is_read(tmp_path):
    write_rows(tmp_path / "rows.csv", [["stem", "value"], ["ä,*", 1.5], ["b*", ""]])
    assert read_rows(tmp_path / "rows.csv", ["value"]) == [{"stem": "ä,*", "value": "1.5"}, {"stem": "b*", "value": ""}]


def test_a_failure_leaves_the_old_table(tmp_path):
    def rows():
        yield ["stem"]
        raise KeyboardInterrupt

    write_rows(tmp_path / "rows.csv", [["old"]])
    with pytest.raises(KeyboardInterrupt):
        write_rows(tmp_path / "rows.csv", rows())
    assert [path.read_text().strip() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_best_median_and_worst(count):
    values = np.random.default_rng(count).permutation(count) * 0.1
    chosen = best_median_worst({f"image{number}": value for number, value in enumerate(values)})
    assert list(chosen) == ["best", "median", "worst"]
    best, median, worst = (values[int(stem.removeprefix("image"))] for stem in chosen.values())
    assert (best, worst) == (values.max(), values.min())
    assert median == np.quantile(values, 0.5, method="lower")


def test_an_image_without_a_score_is_the_worst():
    assert best_median_worst({"a": float("nan"), "b": 0.0, "c": 0.5}) == {"best": "c", "median": "b", "worst": "a"}
    assert best_median_worst({"a": 1.0, "b": 1.0, "c": 1.0}) == {"best": "a", "median": "b", "worst": "c"}
