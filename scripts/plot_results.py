"""Tabulates and draws what scripts.run_study measured.

    python -m scripts.plot_results
    python -m scripts.plot_results --results_dir results/phantom_study --n 20

Reads   study.csv, pseudo_labels.csv and manifest.json in --results_dir; for the overlays also the models and images
Writes  beside them, as text, CSV and LaTeX: paper_table with the mean Dice of each method at every n, its standard
        deviation over images and seeds; for the n that --n names (left out: the largest) table with the p-value of a
        paired Wilcoxon test over images against the initial U-Net, and the surface Dice; pseudo_label_table with the
        same of the pseudo labels, and estimate_table with how well their estimated Dice tells the true one; as PNG and
        PDF: dice_over_n and box_plot_over_n for all n; for that n box_plot, cumulative, per_class, estimated_dice,
        estimate_error, estimate_histogram, and overlays
"""
import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from scripts.run_study import COLUMNS
from scripts.study import figures, tables
from scripts.study.methods import METHODS, Setting
from scripts.study.pictures import overlays, panels
from segment_anything.registry import SAM_TYPES
from unet_training.saved_masks import masks_of
from utils.cli import run_stage, stage_parser
from utils.errors import InputError
from utils.overlay import to_grey
from utils.paths import RESULTS
from utils.records import read_record
from utils.tables import best_median_worst, read_rows, write_table
from utils.tracking.experiment import start

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {name: method.title for name, method in METHODS.items()}
Row = Mapping[str, str]


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.plot_results", __doc__)
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of study.csv, tables and figures")
    parser.add_argument("--n", type=int, help="number of labeled images (left out: the largest)")
    return parser


def main(args: argparse.Namespace) -> list[list[str]]:
    """Returns the table of that n, its first row being the header."""
    folder = args.results_dir
    rows, pseudo_label_rows = (tables.rename_methods(read_rows(folder / name, COLUMNS), TITLES)
                               for name in ("study.csv", "pseudo_labels.csv"))
    manifest = read_manifest(folder / "manifest.json")
    numbers = sorted({int(row["n"]) for row in rows})
    n = max(numbers, default=0) if args.n is None else args.n
    if n not in numbers:
        raise InputError(f"{folder / 'study.csv'}: has no results for n = {n}; run scripts.run_study with this "
                         "--num_train_samples")
    sam_type = manifest["sam_type"]
    what = f"data set {rows[0]['dataset']}, SAM type {sam_type}"
    title = f"{what}, {n} labeled images"
    made = {**make_tables(rows, numbers, what), **tables_of_n(of_n(rows, n), of_n(pseudo_label_rows, n), title)}
    drawn = draw_figures(rows, of_n(pseudo_label_rows, n), n, what, title)
    try:
        drawn["overlays"] = draw_overlays(manifest, of_n(rows, n), title)
    except InputError as error:
        print(f"no overlays: {error}")
    with start(f"results {rows[0]['dataset']} n={n}", {"stage": "plot", "n": n}, kind="data_processing",
               module="scripts.plot_results") as experiment:
        for name, (caption, table) in made.items():
            write_table(folder / name, table, f"{caption}\n{SAM_TYPES[sam_type].notice}")
            experiment.table(caption, table)
        for name, figure in drawn.items():
            figures.save_figure(folder / name, figure)
            picture = cv2.imread(str(folder / f"{name}.png"))[..., ::-1]
            experiment.figure("study", name, np.ascontiguousarray(picture))
    for name in made:
        print((folder / f"{name}.txt").read_text(encoding="utf-8"))
    print(f"tables and figures: {folder}")
    return made["table"][1]


def read_manifest(path: Path) -> dict[str, Any]:
    """Raises InputError if it isn't there or isn't one."""
    try:
        manifest = read_record(path, dict[str, Any])
    except InputError as error:
        raise InputError(f"{error}; run scripts.run_study again") from None
    if manifest.get("sam_type") not in SAM_TYPES or not {"arguments", "results"} <= manifest.keys():
        raise InputError(f"{path}: doesn't say how the study was made; run scripts.run_study again")
    return manifest


def of_n(rows: Sequence[Row], n: int) -> list[Row]:
    return [row for row in rows if int(row["n"]) == n]


def make_tables(rows: Sequence[Row], numbers: Sequence[int], what: str) -> dict[str, tuple[str, list[list[str]]]]:
    """The paper's table: name -> (caption, cells)."""
    table = tables.paper_table(tables.image_scores(rows), numbers, TITLES["initial"])
    return {"paper_table": (f"{what}, test images, Dice in % (p against {TITLES['initial']})", table)}


def tables_of_n(rows: Sequence[Row], pseudo_label_rows: Sequence[Row],
                title: str) -> dict[str, tuple[str, list[list[str]]]]:
    """Of rows of one n: name -> (caption, cells)."""
    made = {"table": (f"{title}, test images", tables.comparison(rows, TITLES["initial"]))}
    if pseudo_label_rows:
        made["pseudo_label_table"] = (f"{title}, pseudo labels", tables.comparison(pseudo_label_rows, TITLES["raw"]))
    if len(estimated := tables.estimates(pseudo_label_rows)) > 1:
        made["estimate_table"] = (f"{title}, the estimated Dice of pseudo labels", estimated)
    return made


def draw_figures(rows: Sequence[Row], pseudo_label_rows: Sequence[Row], n: int, what: str,
                 title: str) -> "dict[str, Figure]":
    """Of all rows of the test images, and those of the pseudo labels of that n."""
    scores = tables.image_scores(rows)
    methods = [method for method, other in scores if other == n]
    drawn = {"dice_over_n": figures.draw(what, figures.dice_over_n, scores),
             "box_plot_over_n": figures.draw(what, figures.box_plot_over_n, scores, width=12),
             "box_plot": figures.draw(title, figures.box_plot, scores, methods, n),
             "cumulative": figures.draw(title, figures.cumulative, scores, methods, n),
             "per_class": figures.draw(title, figures.per_class, of_n(rows, n), methods, width=12)}
    estimated = [row for row in pseudo_label_rows if row["estimated_dice"]]
    if estimated:
        estimates: dict[str, list[float]] = {}
        for row in estimated:
            estimates.setdefault(row["method"], []).append(float(row["estimated_dice"]))
        drawn["estimated_dice"] = figures.draw(title, figures.estimated_dice, estimated)
        drawn["estimate_error"] = figures.draw(title, figures.estimate_error, estimated, width=12)
        drawn["estimate_histogram"] = figures.draw(title, figures.estimate_histogram, estimates)
    return drawn


def draw_overlays(manifest: Mapping[str, Any], rows: Sequence[Row], title: str) -> "Figure":
    """The test images on which the best method does best, as its median, and worst, with the masks of all methods.

    Args:
        rows: of one n
    Raises:
        InputError: a model or an image of the study is gone.
    """
    seed, n = int(rows[0]["seed"]), int(rows[0]["n"])
    dice = {method: {image: value for (other, image), value in images.items() if other == str(seed)}
            for (method, _), images in tables.image_scores(rows).items()}
    best = max(dice, key=lambda method: np.mean(list(dice[method].values())))
    chosen = best_median_worst(dice[best])
    setting = Setting.from_args(restore_arguments(manifest["arguments"]), num_train_samples=n, seed=seed)
    stems, masks = sorted(set(chosen.values())), {}
    for result in manifest["results"]:
        if (result["n"], result["seed"]) == (n, seed):
            model, labels = setting.load(result["model_id"]), setting.labels[result["masks"]]
            masks[TITLES[result["method"]]] = {mask.stem: mask.mask for mask in masks_of(labels, model, stems)}
    pictures = {}
    for name, stem in chosen.items():
        captions = {f"{method}\n{dice[method][stem]:.1f} %": images[stem] for method, images in masks.items()}
        pictures[name] = panels(to_grey(setting.data.read_grey(stem)),
                                {"ground truth": setting.data.mask(stem), **captions})
    return overlays(pictures, setting.data.description.labels,
                    f"{title}: best, median and worst test image of {best}")


def restore_arguments(values: Mapping[str, Any]) -> argparse.Namespace:
    """The arguments of a study as scripts.run_study had them."""
    paths = {name: Path(values[name]) for name in ("data_dir", "derived_dir", "sam_checkpoint") if values.get(name)}
    return argparse.Namespace(**{**values, **paths})


if __name__ == "__main__":
    run_stage(main, get_args_parser())
