"""Tabulates and draws what scripts.run_study measured (paper, the comparison).

    python -m scripts.plot_results
    python -m scripts.plot_results --results_dir results/phantom_study --n 20

Reads   study.csv and manifest.json in --results_dir
Writes  beside it, for the n that --n names (left out: the largest): table.txt, table.csv, table.tex with the mean Dice
        of each method, its standard deviation over images and seeds, and the p-value of a paired Wilcoxon test against
        the initial U-Net; box_plot, cumulative, per_class, and for all n dice_over_n, each as PNG and PDF
"""
import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import wilcoxon

from scripts.csv_tables import read_rows, write_rows
from scripts.run_study import COLUMNS
from segment_anything.registry import SAM_TYPES
from utils.cli import InputError, run_stage, stage_parser
from utils.experiment import start
from utils.files import atomic_path
from utils.paths import RESULTS

COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999")  # Okabe and Ito's
Z95 = 1.96  # standard errors on both sides of a mean that hold it in 95 % of cases
Scores = Mapping[tuple[str, int], Mapping[tuple[str, str], float]]  # (method, n) -> (seed, image) -> Dice in percent


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.plot_results", __doc__)
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of study.csv, tables and figures")
    parser.add_argument("--n", type=int, help="number of labelled images (left out: the largest)")
    return parser


def main(args: argparse.Namespace) -> list[list[str]]:
    """Returns the table, its first row being the header."""
    rows = read_rows(args.results_dir / "study.csv", COLUMNS)
    scores = image_scores(rows)
    n = max(n for _, n in scores) if args.n is None else args.n
    methods = [method for method, other in scores if other == n]
    if not methods:
        raise InputError(f"{args.results_dir / 'study.csv'}: has no results for n = {n}; run scripts.run_study with "
                         "this --num_train_samples")
    sam_type = read_manifest(args.results_dir / "manifest.json")["sam_type"]
    what = f"data set {rows[0]['dataset']}, SAM type {sam_type}"
    table, title = comparison(scores, methods, n), f"{what}, {n} labelled images"
    write_tables(args.results_dir, table, f"{title}\n{SAM_TYPES[sam_type].notice}")
    figures = {
        "dice_over_n": draw(what, lambda axes: dice_over_n(axes, scores)),
        "box_plot": draw(title, lambda axes: box_plot(axes, scores, methods, n)),
        "cumulative": draw(title, lambda axes: cumulative(axes, scores, methods, n)),
        "per_class": draw(title, lambda axes: per_class(axes, rows, methods, n), width=12)}
    with start("plot_results", {"stage": "plot", "n": n, "results_dir": str(args.results_dir)}) as experiment:
        experiment.table(f"Dice at n = {n}", table)
        for name, figure in figures.items():
            save_figure(args.results_dir / name, figure)
            picture = cv2.imread(str(args.results_dir / f"{name}.png"))[..., ::-1]
            experiment.image("study", name, np.ascontiguousarray(picture), 0)
    print((args.results_dir / "table.txt").read_text(encoding="utf-8"))
    print(f"tables and figures: {args.results_dir}")
    return table


def read_manifest(path: Path) -> dict:
    """Raises InputError if it isn't there or isn't one."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable manifest ({error}); run scripts.run_study again") from None
    if manifest.get("sam_type") not in SAM_TYPES:
        raise InputError(f"{path}: doesn't say which SAM was used; run scripts.run_study again")
    return manifest


def image_scores(rows: list[dict[str, str]]) -> Scores:
    """Each image's mean Dice over the classes that it shows, methods and n in the order of the file."""
    classes = defaultdict(lambda: defaultdict(list))
    for row in rows:
        classes[row["method"], int(row["n"])][row["seed"], row["image"]].append(float(row["dice"]))
    return {key: {image: float(np.mean(dice)) for image, dice in images.items()} for key, images in classes.items()}


def comparison(scores: Scores, methods: list[str], n: int) -> list[list[str]]:
    """Method, mean, standard deviation, number of images, p-value against the initial U-Net; the best mean marked *."""
    best = max(methods, key=lambda method: np.mean(list(scores[method, n].values())))
    table = [["method", "mean", "std", "images", "p"]]
    for method in methods:
        dice = list(scores[method, n].values())
        std = f"{np.std(dice, ddof=1):.2f}" if len(dice) > 1 else ""
        table.append([method, f"{np.mean(dice):.2f}" + "*" * (method == best), std, str(len(dice)),
                      p_value(scores.get(("initial", n), {}), scores[method, n])])
    return table


def p_value(initial: Mapping[tuple[str, str], float], other: Mapping[tuple[str, str], float]) -> str:
    """Of a paired two-sided Wilcoxon signed-rank test; empty where there is nothing to compare."""
    pairs = [(initial[image], other[image]) for image in other if image in initial]
    if not any(a != b for a, b in pairs):
        return ""
    return f"{wilcoxon(*zip(*pairs, strict=True)).pvalue:.2g}"


def write_tables(folder: Path, table: list[list[str]], title: str) -> None:
    """As aligned text under a title, CSV, and LaTeX with the best mean in bold."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    text = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    with atomic_path(folder / "table.txt") as temporary:
        temporary.write_text(f"{title.strip()}\n\n{text}\n\n* best mean\n", encoding="utf-8")
    write_rows(folder / "table.csv", ([cell.removesuffix("*") for cell in row] for row in table))
    lines = [" & ".join(rf"\textbf{{{cell[:-1]}}}" if cell.endswith("*") else cell.replace("_", r"\_") for cell in row)
             for row in table]
    with atomic_path(folder / "table.tex") as temporary:
        temporary.write_text("\\begin{tabular}{lrrrr}\n\\hline\n" + " \\\\\n".join([lines[0] + r" \\ \hline" + "\n"
                             + lines[1], *lines[2:]]) + " \\\\\n\\hline\n\\end{tabular}\n", encoding="utf-8")


def draw(title: str, fill: Callable[[Axes], None], width: float = 7) -> Figure:
    """A figure of one plot; its width in inches."""
    figure = Figure(figsize=(width, 4.5), layout="constrained")
    axes = figure.add_subplot()
    fill(axes)
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
    return figure


def save_figure(path: Path, figure: Figure) -> None:
    """As `path`.png and `path`.pdf, whose text stays text."""
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        for suffix in (".png", ".pdf"):
            with atomic_path(path.with_suffix(suffix)) as temporary:
                figure.savefig(temporary, dpi=200)


def colour_of(methods: list[str]) -> dict[str, str]:
    return {method: COLOURS[index % len(COLOURS)] for index, method in enumerate(methods)}


def dice_over_n(axes: Axes, scores: Scores) -> None:
    """Mean over images and seeds, with the band that holds it in 95 % of cases."""
    methods = list(dict.fromkeys(method for method, _ in scores))
    for method, colour in colour_of(methods).items():
        numbers = sorted(n for other, n in scores if other == method)
        dice = [list(scores[method, n].values()) for n in numbers]
        mean = np.array([np.mean(each) for each in dice])
        band = np.array([Z95 * np.std(each, ddof=1) / len(each) ** 0.5 if len(each) > 1 else 0 for each in dice])
        axes.plot(numbers, mean, "o-", color=colour, label=method)
        axes.fill_between(numbers, mean - band, mean + band, color=colour, alpha=0.15)
    axes.set(xlabel="labelled images", ylabel="Dice in %")
    axes.legend()


def box_plot(axes: Axes, scores: Scores, methods: list[str], n: int) -> None:
    """Median, quartiles, and whiskers of at most 1.5 times their distance; a point is one image and seed."""
    boxes = axes.boxplot([list(scores[method, n].values()) for method in methods], patch_artist=True,
                         medianprops={"color": "black"})
    for box, colour in zip(boxes["boxes"], colour_of(methods).values(), strict=True):
        box.set(facecolor=colour, alpha=0.5)
    axes.set_xticks(range(1, len(methods) + 1), methods, rotation=20, ha="right")
    axes.set(ylabel="Dice in %")


def cumulative(axes: Axes, scores: Scores, methods: list[str], n: int) -> None:
    """Share of images up to each Dice; a line further to the right is better."""
    for method, colour in colour_of(methods).items():
        axes.ecdf(list(scores[method, n].values()), color=colour, label=method)
    axes.set(xlabel="Dice in %", ylabel="share of images up to it")
    axes.legend()


def per_class(axes: Axes, rows: list[dict[str, str]], methods: list[str], n: int) -> None:
    """Mean Dice of each class over the images that show it, and over seeds."""
    dice = defaultdict(list)
    for row in rows:
        if int(row["n"]) == n:
            dice[row["method"], row["class"]].append(float(row["dice"]))
    classes = list(dict.fromkeys(label for _, label in dice))
    width = 0.8 / len(methods)
    for index, (method, colour) in enumerate(colour_of(methods).items()):
        axes.bar(np.arange(len(classes)) + (index - (len(methods) - 1) / 2) * width,
                 [np.mean(dice[method, label] or np.nan) for label in classes], width, color=colour, label=method)
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right")
    axes.set(ylabel="Dice in %")
    axes.figure.legend(ncols=len(methods), fontsize="small", loc="outside lower center")


if __name__ == "__main__":
    run_stage(main, get_args_parser())
