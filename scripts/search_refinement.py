"""Searches for the options of a refinement that gain most on the validation images.

    python -m scripts.search_refinement --model_id ID
    python -m scripts.search_refinement --dataset phantom --num_train_samples 5 --trials 50
    python -m scripts.search_refinement --refiner random_walk

The grid is tried in random order. A rerun resumes where the last one stopped, until --trials are done or the grid is.

Reads   a model by its id, the labeled validation images, with `--refiner sam` SAM's weights
Writes  results/<dataset>/<model id>/search_<refiner>/: study.log (Optuna's journal), trials.csv (every trial, the best
        first; gain is that of the Dice over the U-Net's own masks, in points), options.csv (the mean gain with
        each value of each option, and whether the option made a difference at all), Optuna's history, slices and
        contours as PNG and PDF
"""
import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from scripts.study.figures import save_figure, search_figures
from segment_anything.refinement.cleaning import ELEMENTS, OPERATIONS, SELECTIONS, clean_masks
from segment_anything.refinement.refine import ORDERS, RefinementOptions, refine_all
from unet_training.models import TrainedModel, add_saving_arguments
from unet_training.pseudo_labels import SamRefined
from unet_training.training_stage import data_parameters, fingerprint, identity
from utils.cli import run_stage, stage_parser
from utils.datasets.annotated import read_scaled
from utils.dice import multilabel_dice
from utils.digests import digest_file
from utils.errors import InputError
from utils.locks import check_writable, exclusive
from utils.options import positive_int
from utils.paths import RESULTS
from utils.provenance import describe_run
from utils.random_walk import RandomWalkOptions, random_walk_masks
from utils.records import write_record
from utils.tables import write_rows

if TYPE_CHECKING:
    import optuna

Refiner = Callable[[Mapping[str, Any]], list[np.ndarray]]  # from options to the refined masks of all images
SAM_GRID = {
    "prompt1st": ["box", "pos_points neg_points", "pos_points"],
    "prompt2nd": ["", "box", "pos_points neg_points", "pos_points"],
    "ccl_selection": list(SELECTIONS),
    "morphology_operation": list(OPERATIONS), "morphology_element": list(ELEMENTS), "morphology_radius": list(range(9)),
    "morphology_order": list(ORDERS),
}
WALK_GRID = {
    "ccl_selection": list(SELECTIONS), "walk_radius": [1, 2, 4, 8, 16], "sigma": [5.0, 10.0, 19.87, 40.0, 80.0],
}
NO_DIFFERENCE = 0.01  # points of Dice


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.search_refinement", __doc__)
    add_saving_arguments(parser)
    SamRefined.add_arguments(parser)
    parser.add_argument("--refiner", choices=("sam", "random_walk"), default="sam", help="what refines")
    parser.add_argument("--trials", type=positive_int, default=100, help="points of the grid, earlier ones too")
    parser.add_argument("--figures", action=argparse.BooleanOptionalAction, default=True,
                        help="draw history, slices and contours, which takes some seconds")
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of the results")
    return parser


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the trials, the best one first: their options and gain."""
    check_writable(args.results_dir)
    model = TrainedModel.from_args(args)
    labels, stems = SamRefined.from_args(args, model.data), model.data.stems("val")
    if not isinstance(labels, SamRefined):
        raise InputError("--refinement recommended: chooses by itself, there is nothing to search; leave it out")
    if args.refiner == "sam":
        name, grid = f"sam_{labels.sam.name}", SAM_GRID
        probabilities, refiner = prepare_sam(labels, model, stems)
    else:
        name, grid = args.refiner, WALK_GRID
        probabilities, refiner = prepare_walk(model, stems)
    ground_truth = torch.from_numpy(np.stack([model.data.mask(stem) for stem in stems]))
    raw = pooled_dice([image > 0.5 for image in probabilities], ground_truth)
    folder = args.results_dir / model.data.description.name / model.id / f"search_{name}"
    inputs = {"model": digest_file(model.record.weights), "grid": grid, **data_parameters(model.data, stems),
              **(labels.sam.parameters if args.refiner == "sam" else {})}
    with exclusive(folder / "study.log"):
        study = search(lambda options: pooled_dice(refiner(options), ground_truth) - raw, grid, folder, args.trials,
                       args.seed, fingerprint(identity(inputs)))
    trials = rank_trials(study)
    write_table(folder / "trials.csv", trials)
    write_table(folder / "options.csv", option_effects(trials, grid))
    write_record(folder / "search.json", {"inputs": inputs, "run": describe_run()})
    if args.figures:
        for name, figure in search_figures(study).items():
            save_figure(folder / name, figure)
    print(f"raw masks: Dice {raw:.2f} % ({len(stems)} validation images, all classes alike)")
    print(f"best of {len(trials)} trials: {trials[0]['gain']:+.2f} with "
          + ", ".join(f"{option} = {value}" for option, value in trials[0].items() if option != "gain"))
    print(f"tables: {folder}")
    return trials


def search(gain: Callable[[Mapping[str, Any]], float], grid: Mapping[str, Sequence], folder: Path, trials: int,
           seed: int, name: str) -> "optuna.Study":
    """Tries points of the grid in random order but for those that the folder's journal holds of the study of that name,
    which stands for all that the gain depends on. A trial enters the journal when it is done, so that one that was cut
    off is tried again."""
    import optuna  # takes a second to import
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.log")))
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize",
                                load_if_exists=True)
    distributions = {name: optuna.distributions.CategoricalDistribution(values) for name, values in grid.items()}
    tried = [trial.params for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])]
    missing = [point for point in shuffle_grid(grid, seed) if point not in tried][:max(0, trials - len(tried))]
    for point in tqdm(missing, "trials", unit="trial"):
        study.add_trial(optuna.create_trial(params=point, distributions=distributions, value=gain(point)))
    return study


def shuffle_grid(grid: Mapping[str, Sequence], seed: int) -> list[dict[str, Any]]:
    """All points of the grid in the order in which Optuna's GridSampler tries them."""
    names = sorted(grid)
    points = list(product(*(grid[name] for name in names)))
    np.random.RandomState(seed).shuffle(points)
    return [dict(zip(names, point, strict=True)) for point in points]


def rank_trials(study: "optuna.Study") -> list[dict[str, Any]]:
    """Options and gain of each trial, the best one first."""
    done = [{**trial.params, "gain": trial.value} for trial in study.trials if trial.value is not None]
    return sorted(done, key=lambda trial: -trial["gain"])


def prepare_sam(labels: SamRefined, model: TrainedModel, stems: Sequence[str]) -> tuple[list[np.ndarray], Refiner]:
    """The network's probabilities of each image, and the refinement by SAM."""
    decoder, images = labels.inputs(model, stems)
    inputs = [image for _, *image in images]

    def refine(options: Mapping[str, Any]) -> list[np.ndarray]:
        prompts = {name: tuple(options[name].split()) for name in ("prompt1st", "prompt2nd")}
        chosen = RefinementOptions(**{**options, **prompts}, morphology="paper")
        return [refined.mask for refined in refine_all(inputs, decoder, chosen)]

    return [probabilities for probabilities, _ in inputs], refine


def prepare_walk(model: TrainedModel, stems: Sequence[str]) -> tuple[list[np.ndarray], Refiner]:
    """As `prepare_sam`, by a random walk."""
    probabilities = [image for _, image in model.probabilities(stems)]
    grey = [255 * read_scaled(model.data.image_path(stem), model.data.description) for stem in stems]

    def refine(options: Mapping[str, Any]) -> list[np.ndarray]:
        settings = RandomWalkOptions(walk_radius=options["walk_radius"], sigma=options["sigma"])
        return [random_walk_masks(pixels, clean_masks(image, options["ccl_selection"]), settings, image)
                for pixels, image in zip(grey, probabilities, strict=True)]

    return probabilities, refine


def pooled_dice(masks: Sequence[np.ndarray], ground_truth: torch.Tensor) -> float:
    """Mean over all classes of all images alike, in percent, as the authors' seg_processing/hpo_seg_preprocess.py
    maximizes it."""
    return 100 * multilabel_dice(torch.from_numpy(np.stack(masks)), ground_truth).nanmean().item()


def option_effects(trials: Sequence[Mapping[str, object]], grid: Mapping[str, Sequence]) -> list[dict[str, object]]:
    """For each value of each option its mean gain; an option makes no difference where trials that agree in all other
    options gain the same with each of its values, as far as they were tried."""
    rows = []
    for option, values in grid.items():
        alike: dict[tuple, list[float]] = {}
        for trial in trials:
            alike.setdefault(tuple(trial[other] for other in grid if other != option), []).append(trial["gain"])
        matters = any(max(gains) - min(gains) > NO_DIFFERENCE for gains in alike.values())
        compared = any(len(gains) > 1 for gains in alike.values())
        for value in values:
            gains = [trial["gain"] for trial in trials if trial[option] == value]
            rows.append({"option": option, "value": value, "trials": len(gains),
                         "mean_gain": float(np.mean(gains)) if gains else "",
                         "makes_a_difference": ("no", "yes")[matters] if compared else "not compared"})
    return rows


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Gains with four decimals."""
    write_rows(path, [list(rows[0]), *([f"{value:.4f}" if name in ("gain", "mean_gain") and value != "" else value
                                        for name, value in row.items()] for row in rows)])


if __name__ == "__main__":
    run_stage(main, get_args_parser())
