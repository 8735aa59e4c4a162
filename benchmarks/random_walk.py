"""Times the random walk's refinement of one image: conjugate gradients class by class, and ours.

    python -m benchmarks.random_walk
    python -m benchmarks.random_walk --radius 8 --images 10

The largest difference is that of the probabilities; the Dice that is printed is that of ours with a solution to 1e-12.

Reads   annotations_train.xml; --image_folder, left out: the phantoms (python -m scripts.make_phantoms)
Writes  nothing, or the table: --json FILE, and --record into benchmarks/RESULTS.md
"""
import argparse

import cv2
import numpy as np
import torch

from benchmarks import paper_way
from benchmarks.inputs import DRAWN, add_image_arguments, describe, list_images, predictions
from benchmarks.measure import ReportOptions, Step, Stopwatch, report
from segment_anything.refinement.cleaning import clean_masks
from utils.cli import run_stage, stage_parser
from utils.files import read_grey
from utils.options import add_options, options_from
from utils.random_walk import PRESETS, find_seeded_pixels, random_walk

STEP = "random walk, all classes"


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("benchmarks.random_walk", __doc__)
    add_image_arguments(parser)
    parser.set_defaults(image_folder=DRAWN)  # the masks are of these
    parser.add_argument("--radius", type=int, default=PRESETS["active"][0], help="of the background's erosion")
    add_options(parser, ReportOptions)
    return parser


def main(args: argparse.Namespace) -> list[Step]:
    """Returns the line of the table."""
    _, sigma = PRESETS["active"]
    watch, differences, changed, dice = Stopwatch(torch.device("cpu")), [], 0, []
    for path, probabilities in zip(paths := list_images(args.image_folder, args.images), predictions(), strict=False):
        seeds = clean_masks(probabilities)
        grey = cv2.resize(read_grey(path), seeds.shape[:0:-1]).astype(np.float64)
        seeded = find_seeded_pixels(seeds, args.radius)
        theirs = watch.time(STEP, "baseline", paper_way.random_walk, grey, seeded, seeds, sigma)
        ours = watch.time(STEP, "ours", random_walk, grey, seeded, seeds, sigma)
        exact = paper_way.random_walk(grey, seeded, seeds, sigma, tolerance=1e-12) > 0.5
        differences.append(np.abs(theirs - ours).max())
        changed += int(((theirs > 0.5) != (ours > 0.5)).sum())
        dice.append(2 * (exact & (ours > 0.5)).sum() / (exact.sum() + (ours > 0.5).sum()))
    steps = [watch.step(STEP, max(differences), changed)]
    report(options_from(ReportOptions, args), f"random_walk --radius {args.radius}", torch.device("cpu"),
           f"{describe(paths)}; smallest Dice of the unseeded pixels with the exact "
           f"solution {min(dice):.4f}", steps)
    return steps


if __name__ == "__main__":
    run_stage(main, get_args_parser())
