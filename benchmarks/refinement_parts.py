"""Measures what the parts of the recommended refinement give, how many validation images it needs, how sure it is.

    python -m benchmarks.refinement_parts --dataset jsrt --num_train_samples 20 --sam_type medsam_lite
    python -m benchmarks.refinement_parts --dataset jsrt --num_train_samples 20 --sam_type medsam_lite --validation 3 10
    python -m benchmarks.refinement_parts --dataset jsrt --num_train_samples 20 --sam_type medsam_lite --estimate

It is calibrated without one part at a time; or whole, on so many validation images (--validation), drawn several times;
or with another estimate of the Dice (--estimate). Prints mean Dice in %: of the validation images, each with the shares
and cuts that the others choose, and of unlabeled images whose ground truth is known, with those that all validation
images choose. The first column is for decisions, the second one shows what they are worth. Then the correlation of the
estimated with the true Dice of the unlabeled images: over all masks, over those of a class (the mean over classes), and
over the images' means; and by how many points the estimate is too high.

Reads   a model by its id, images and masks of the data set, SAM's weights; embeddings that are missing are computed
Writes  nothing else
"""
import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from scripts.study.tables import correlate
from segment_anything.options import Sam, SamOptions
from segment_anything.refinement import recommended
from segment_anything.refinement.recommended import FEATURES, PRIOR, Calibration, refine_all_calibrated
from segment_anything.refinement.refine import Refined
from unet_training.models import Selection, TrainedModel, add_model_arguments
from unet_training.pseudo_labels import Raw, Recommended, RecommendedOptions
from utils.cli import run_stage, stage_parser
from utils.dice import image_dice, multilabel_dice
from utils.errors import InputError
from utils.options import add_options, options_from, positive_int

RAW, WHOLE = "the U-Net's masks", "all of it"
PARTS: dict[str, dict[str, Any]] = {  # what takes the place of which constants of the refinement
    WHOLE: {"PRIOR": PRIOR},
    "without SAM": {"SHARES": (0.0,)},
    "without the U-Net, whose masks give the prompts alone": {"SHARES": (1.0,)},
    "without cuts: every one is 0": {"CUTS": np.zeros(1)},
    "box alone": {"PROMPT_SETS": (("box",),)},
    "box and mask alone": {"PROMPT_SETS": (("box", "mask"),)},
    "box, positive point and mask alone": {"PROMPT_SETS": (("box", "pos_points", "mask"),)},
    "without the choice of a component": {"COMPONENTS": ("none",)},
    "each class by itself": {"PRIOR": 1e-6},
    "one choice for all classes": {"PRIOR": 1e6},
}
ALONE = {name: {"RIDGE": 1e9, "PLAIN": tuple(float(each == name) for each in FEATURES)} for name in FEATURES}
ESTIMATES: dict[str, dict[str, Any]] = {  # likewise, for the estimated Dice; each alone is shifted for each class
    WHOLE: PARTS[WHOLE],
    "without the size": {"MOST": 1e9},  # none is off by so much
    "what the probabilities expect alone": ALONE["expected"],
    "the agreement with SAM alone": ALONE["agreement"],
    "SAM's own alone": ALONE["sam"],
}
DRAWS = 4  # of validation images


class Row(NamedTuple):
    """NaN where there is none, as of a single validation image.

    Attributes:
        validation, unlabeled: mean Dice in percent
        masks, classes, images: correlations of the estimated with the true Dice of unlabeled images
        excess: mean of the estimated less the true Dice, in points
    """

    validation: float
    unlabeled: float
    masks: float = math.nan
    classes: float = math.nan
    images: float = math.nan
    excess: float = math.nan


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("benchmarks.refinement_parts", __doc__)
    add_model_arguments(parser)
    add_options(parser.add_argument_group("SAM"), SamOptions)
    parser.add_argument("--images", type=positive_int, default=60, help="unlabeled images at most")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--validation", type=positive_int, nargs="+", metavar="N",
                         help=f"leave no part out; calibrate on all validation images, and {DRAWS} times on so many")
    instead.add_argument("--estimate", action="store_true",
                         help="leave out parts of what estimates the Dice, and no others")
    return parser


def main(args: argparse.Namespace) -> dict[str, Row]:
    """Returns the lines of the table, by name."""
    model, selection = TrainedModel.from_args(args), options_from(Selection, args)
    labels = Recommended(Sam.choose(options_from(SamOptions, args), model.data), RecommendedOptions("recommended"))
    validation, unlabeled = model.data.stems("val"), model.unlabeled_stems(selection)
    unlabeled = [stem for stem in unlabeled if model.data.has_ground_truth(stem)][:args.images]
    if (most := max(args.validation or [0])) > len(validation):
        raise InputError(f"--validation {most}: the data set has {len(validation)} validation images; give fewer")
    rows = {RAW: Row(*(mean_dice(measure(model, stems, (mask.mask for mask in Raw().compute(model, stems))))
                       for stems in (validation, unlabeled)))}
    if args.estimate:
        rows |= refine_with_estimates(labels, model, validation, unlabeled)
    else:
        for name, constants in PARTS.items() if not args.validation else [(WHOLE, PARTS[WHOLE])]:
            with mock.patch.multiple(recommended, **constants):
                rows[name] = calibrate_and_rate(labels, model, validation, unlabeled)
    for count in args.validation or ():
        rng = np.random.default_rng(args.seed)
        chosen = [rng.choice(validation, count, replace=False).tolist() for _ in range(DRAWS)]
        draws = [calibrate_and_rate(labels, model, stems, unlabeled) for stems in chosen]
        rows[f"{count} validation images, mean of {DRAWS} draws"] = Row(*np.mean(draws, axis=0))
        rows[f"{count} validation images, worst draw"] = min(draws, key=lambda row: row.unlabeled)
    print(f"{len(validation)} validation and {len(unlabeled)} unlabeled images, {labels.title}\n"
          "| | validation | unlabeled | r over masks | of a class | over images | excess |\n"
          "|---|---:|---:|---:|---:|---:|---:|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join('' if math.isnan(value) else f'{value:.2f}' for value in row)} |")
    return rows


def calibrate_and_rate(labels: Recommended, model: TrainedModel, validation: Sequence[str], unlabeled: Sequence[str]
                       ) -> Row:
    calibration = labels.ask(model, validation)
    return rate(model, calibration, unlabeled, refine(labels, model, calibration, unlabeled))


def refine_with_estimates(labels: Recommended, model: TrainedModel, validation: Sequence[str],
                          unlabeled: Sequence[str]) -> dict[str, Row]:
    """SAM is asked once, as all but the estimate is the same."""
    with mock.patch.object(recommended, "_fit_estimate", wraps=recommended._fit_estimate) as fit:
        calibration = labels.ask(model, validation)
    with mock.patch.object(recommended, "_estimate", wraps=recommended._estimate) as estimate:
        refined = refine(labels, model, calibration, unlabeled)
    known = {id(call.args[0]): call.args[:2] for call in estimate.call_args_list}  # of the masks, in any order
    rows = {}
    for name, constants in ESTIMATES.items():
        with mock.patch.multiple(recommended, **constants):
            changed = replace(calibration, estimate=recommended._fit_estimate(*fit.call_args.args))
            again = [recommended._estimate(*known[id(each.mask)], changed) for each in refined]
        rows[name] = rate(model, calibration, unlabeled, again)
    return rows


def refine(labels: Recommended, model: TrainedModel, calibration: Calibration, unlabeled: Sequence[str]
           ) -> list[Refined]:
    decoder, images = labels.inputs(model, unlabeled)
    return list(refine_all_calibrated((image for _, *image in images), decoder, calibration))


def rate(model: TrainedModel, calibration: Calibration, unlabeled: Sequence[str], refined: Sequence[Refined]) -> Row:
    """What the refinement gives that was calibrated so."""
    validation = 100 * (calibration.held_out_dice or math.nan)
    if not refined:
        return Row(validation, math.nan)
    dice = measure(model, unlabeled, (each.mask for each in refined))
    estimated = np.stack([each.estimated_dice for each in refined])
    return Row(validation, mean_dice(dice), *correlate_masks(dice, estimated), 100 * np.nanmean(estimated - dice))


def measure(model: TrainedModel, stems: Sequence[str], masks: Iterable[np.ndarray]) -> np.ndarray:
    """Dice of each image and class, (N, C); masks are bool, (C, H, W), at the network's input size."""
    dice = [multilabel_dice(torch.from_numpy(mask), torch.from_numpy(model.data.mask(stem))).double().numpy()
            for stem, mask in zip(stems, masks, strict=True)]
    return np.reshape(dice, (len(dice), len(model.data.description.labels)))


def mean_dice(dice: np.ndarray) -> float:
    """Over images, in percent."""
    return 100 * image_dice(torch.from_numpy(dice)).nanmean().item()


def correlate_masks(dice: np.ndarray, estimated: np.ndarray) -> tuple[float, float, float]:
    """Of (N, C), NaN where a mask doesn't count: over masks, over those of a class, over images' means."""
    pairs = np.stack([dice, estimated], axis=-1)
    counted = ~np.isnan(pairs).any(axis=-1)
    of_classes = [correlate(of_class[shown]) for of_class, shown in
                  zip(pairs.swapaxes(0, 1), counted.T, strict=True)]
    of_images = [of_image[shown].mean(axis=0) for of_image, shown in zip(pairs, counted, strict=True) if shown.any()]
    return correlate(pairs[counted]), np.nanmean(of_classes), correlate(np.array(of_images))


if __name__ == "__main__":
    run_stage(main, get_args_parser())
