"""Tabulates and draws what scripts.run_study measured (paper, the comparison).

    python -m scripts.plot_results
    python -m scripts.plot_results --results_dir results/phantom_study --n 20

Reads   study.csv, pseudo_labels.csv and manifest.json in --results_dir; for the overlays also the models and images
Writes  beside them, for the n that --n names (left out: the largest): table.txt, table.csv, table.tex with the mean
        Dice of each method, its standard deviation over images and seeds, the p-value of a paired Wilcoxon test over
        images against the initial U-Net, and the surface Dice; pseudo_label_table.* with the same of the pseudo labels;
        box_plot, cumulative, per_class, estimated_dice, overlays, and for all n dice_over_n, each as PNG and PDF
"""
import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import wilcoxon

from scripts import evaluate
from scripts.run_pipeline import stage_arguments
from scripts.run_study import COLUMNS
from scripts.study.figures import (
    box_plot,
    cumulative,
    dice_over_n,
    draw,
    estimated_dice,
    per_class,
    save_figure,
)
from scripts.study.pictures import overlays
from scripts.study.tables import Scores
from scripts.study.tables import mean_over_seeds as over_seeds
from segment_anything.registry import SAM_TYPES
from unet_training.arguments import load_model_and_data
from utils.cli import run_stage, select_device, stage_parser
from utils.datasets.annotated import open_dataset
from utils.errors import InputError
from utils.files import atomic_path, read_grey
from utils.overlay import overlay, to_grey
from utils.paths import RESULTS
from utils.tables import read_rows, write_rows
from utils.tracking.experiment import start


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.plot_results", __doc__)
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of study.csv, tables and figures")
    parser.add_argument("--n", type=int, help="number of labeled images (left out: the largest)")
    return parser


def main(args: argparse.Namespace) -> list[list[str]]:
    """Returns the table, its first row being the header."""
    folder = args.results_dir
    rows, pseudo_label_rows = (read_rows(folder / name, COLUMNS) for name in ("study.csv", "pseudo_labels.csv"))
    manifest = read_manifest(folder / "manifest.json")
    scores = image_scores(rows)
    n = max((n for _, n in scores), default=0) if args.n is None else args.n
    methods = [method for method, other in scores if other == n]
    if not methods:
        raise InputError(f"{folder / 'study.csv'}: has no results for n = {n}; run scripts.run_study with this "
                         "--num_train_samples")
    sam_type = manifest["sam_type"]
    what = f"data set {rows[0]['dataset']}, SAM type {sam_type}"
    title, notice = f"{what}, {n} labeled images", SAM_TYPES[sam_type].notice
    rows, pseudo_label_rows = ([row for row in each if int(row["n"]) == n] for each in (rows, pseudo_label_rows))
    tables = {"table": (f"{title}, test images", comparison(rows, "initial"))}
    if pseudo_label_rows:
        tables["pseudo_label_table"] = (f"{title}, pseudo labels", comparison(pseudo_label_rows, "raw"))
    figures = {
        "dice_over_n": draw(what, lambda axes: dice_over_n(axes, scores)),
        "box_plot": draw(title, lambda axes: box_plot(axes, scores, methods, n)),
        "cumulative": draw(title, lambda axes: cumulative(axes, scores, methods, n)),
        "per_class": draw(title, lambda axes: per_class(axes, rows, methods), width=12)}
    if estimates := [row for row in pseudo_label_rows if row["estimated_dice"]]:
        figures["estimated_dice"] = draw(title, lambda axes: estimated_dice(axes, estimates))
    try:
        figures["overlays"] = best_median_worst(manifest, rows, title)
    except InputError as error:
        print(f"no overlays: {error}")
    with start("plot_results", {"stage": "plot", "n": n, "results_dir": str(folder)}) as experiment:
        for name, (caption, table) in tables.items():
            write_tables(folder / name, table, f"{caption}\n{notice}")
            experiment.table(caption, table)
        for name, figure in figures.items():
            save_figure(folder / name, figure)
            picture = cv2.imread(str(folder / f"{name}.png"))[..., ::-1]
            experiment.image("study", name, np.ascontiguousarray(picture), 0)
    for name in tables:
        print((folder / f"{name}.txt").read_text(encoding="utf-8"))
    print(f"tables and figures: {folder}")
    return tables["table"][1]


def read_manifest(path: Path) -> dict:
    """Raises InputError if it isn't there or isn't one."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable manifest ({error}); run scripts.run_study again") from None
    if manifest.get("sam_type") not in SAM_TYPES or not {"arguments", "results"} <= manifest.keys():
        raise InputError(f"{path}: doesn't say how the study was made; run scripts.run_study again")
    return manifest


def image_scores(rows: list[dict[str, str]], measure: str = "dice") -> Scores:
    """Each image's mean over the classes that it shows, methods and n in the order of the file."""
    classes = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row[measure]:
            classes[row["method"], int(row["n"])][row["seed"], row["image"]].append(float(row[measure]))
    return {key: {image: float(np.mean(values)) for image, values in images.items()} for key, images in classes.items()}


def comparison(rows: list[dict[str, str]], baseline: str) -> list[list[str]]:
    """Of rows of one n: method, mean, standard deviation, number of images, p-value against the baseline, and where
    there is a surface Dice its mean and deviation; the best mean marked *."""
    scores, surface = ({method: dice for (method, _), dice in image_scores(rows, measure).items()}
                       for measure in ("dice", "surface_dice"))
    means = {method: np.mean(list(dice.values())) for method, dice in scores.items()}
    table = [["method", "mean", "std", "images", "p", *(["surface mean", "surface std"] if surface else [])]]
    for method, dice in scores.items():
        mean, std = mean_and_std(dice)
        table.append([method, mean + "*" * int(means[method] == max(means.values())), std, str(len(dice)),
                      p_value(scores.get(baseline, {}), dice),
                      *(mean_and_std(surface.get(method, {})) if surface else [])])
    return table


def mean_and_std(values: Mapping[tuple[str, str], float]) -> tuple[str, str]:
    """Empty where there are too few values."""
    numbers = list(values.values())
    return (f"{np.mean(numbers):.2f}" if numbers else "", f"{np.std(numbers, ddof=1):.2f}" if len(numbers) > 1 else "")


def p_value(initial: Mapping[tuple[str, str], float], other: Mapping[tuple[str, str], float]) -> str:
    """Of a paired two-sided Wilcoxon signed-rank test; empty where there is nothing to compare.

    An image counts once, with its mean over seeds.
    """
    gains = list(over_seeds({key: other[key] - initial[key] for key in other if key in initial}).values())
    return f"{wilcoxon(gains).pvalue:.2g}" if any(gains) else ""


def write_tables(path: Path, table: list[list[str]], title: str) -> None:
    """As aligned text under a title (`path`.txt), CSV, and LaTeX with the best mean in bold."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    text = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in table)
    with atomic_path(path.with_suffix(".txt")) as temporary:
        temporary.write_text(f"{title.strip()}\n\n{text}\n\n* best mean\n", encoding="utf-8")
    write_rows(path.with_suffix(".csv"), ([cell.removesuffix("*") for cell in row] for row in table))
    lines = [" & ".join(rf"\textbf{{{cell[:-1]}}}" if cell.endswith("*") else cell.replace("_", r"\_") for cell in row)
             for row in table]
    begin = f"\\begin{{tabular}}{{l{'r' * (len(widths) - 1)}}}\n\\hline\n"
    with atomic_path(path.with_suffix(".tex")) as temporary:
        temporary.write_text(begin + " \\\\\n".join([lines[0] + r" \\ \hline" + "\n" + lines[1], *lines[2:]])
                             + " \\\\\n\\hline\n\\end{tabular}\n", encoding="utf-8")


def best_median_worst(manifest: dict, rows: list[dict[str, str]], title: str) -> Figure:
    """The test images on which the best method does best, as its median, and worst, with the masks of all methods.

    Raises:
        InputError: a model or an image of the study is gone.
    """
    seed, n = rows[0]["seed"], rows[0]["n"]
    dice = {method: {image: value for (other, image), value in images.items() if other == seed}
            for (method, _), images in image_scores(rows).items()}
    best = max(dice, key=lambda method: np.mean(list(dice[method].values())))
    ranked = sorted(dice[best], key=dice[best].get, reverse=True)
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    study = argparse.Namespace(**{**manifest["arguments"], "num_train_samples": int(n), "seed": int(seed)})
    study.data_dir = Path(study.data_dir)
    data = open_dataset(study.dataset, study.data_dir, study.input_size)
    masks = {result["method"]: test_masks(study, result["model_id"], result["masks"], sorted(set(chosen.values())))
             for result in manifest["results"] if (str(result["n"]), str(result["seed"])) == (n, seed)}
    pictures = {}
    for name, stem in chosen.items():
        grey = to_grey(read_grey(data.image_path(stem)))
        pictures[name] = [("radiograph", overlay(grey, ())), ("ground truth", overlay(grey, data.mask(stem)))]
        pictures[name] += [(f"{method}\n{dice[method][stem]:.1f} %", overlay(grey, mask[stem]))
                           for method, mask in masks.items()]
    return overlays(pictures, data.description.labels, f"{title}: best, median and worst test image of {best}")


def test_masks(study: argparse.Namespace, model_id: str, pseudo_label: str, stems: list[str]) -> dict[str, np.ndarray]:
    """A model's masks of these images, of the kind that was measured; `study` has the arguments at that n and seed."""
    args, device = stage_arguments(evaluate, study, model_id=model_id, pseudo_label=pseudo_label), select_device(None)
    model, network, _, data = load_model_and_data(args, device, stage=None)
    return {stem: mask for stem, mask, _ in evaluate.masks_of(args, model.id, network, data, stems, device)}


if __name__ == "__main__":
    run_stage(main, get_args_parser())
