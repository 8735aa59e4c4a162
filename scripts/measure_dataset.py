"""Measures what the description of a data set says of its training images, for your own data.

    python -m scripts.measure_dataset --dataset NAME

Write what it prints into <data_dir>/NAME/description.toml, anywhere above the first [table].

Reads   the training images and their masks, and the description, which need not have these keys yet
Writes  nothing
"""
import argparse
import dataclasses
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.cli import run_stage, stage_parser
from utils.datasets.annotated import AnnotatedImages, open_dataset, read_scaled
from utils.datasets.description import MEASURED
from utils.errors import InputError
from utils.files import read_grey
from utils.paths import DATA


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.measure_dataset", __doc__)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="the folder in <data_dir>")
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder of all data sets")
    return parser


def main(args: argparse.Namespace) -> dict[str, object]:
    """Returns the keys and their values."""
    data = open_dataset(args.dataset, args.data_dir, measured=False)
    values = {}
    if data.description.max_grey_value is None and (max_grey_value := white_of(data)):
        data.description = dataclasses.replace(data.description, max_grey_value=max_grey_value)
        values["max_grey_value"] = max_grey_value
    values.update(zip(MEASURED, measure(data), strict=True))
    for key, value in values.items():
        print(f"{key} = {value}")
    return values


def white_of(data: AnnotatedImages) -> int | None:
    """The largest number of as many bits as the training images use of 16; None if that is all of them, or they have 8.

    Radiographs of 10 or 12 bits in files of 16 would be nearly black.
    """
    images = (read_grey(data.image_path(stem)) for stem in data.stems("train"))
    used = max((int(image.max()).bit_length() for image in images if image.dtype == np.uint16), default=16)
    return 2 ** used - 1 if used < 16 else None


def measure(data: AnnotatedImages) -> tuple[float, float, list[float]]:
    """Mean and standard deviation of the training images at input size, scaled to [0, 1], and for each label the number
    of background pixels over that of foreground pixels (paper, section 1).

    Raises:
        InputError: no training mask shows a label.
    """
    labels, size = data.description.labels, data.description.input_size
    foreground, sums, stems = np.zeros(len(labels)), np.zeros(2), data.stems("train")
    for stem in tqdm(stems, desc="training images", unit="image", leave=False):
        foreground += np.count_nonzero(data.mask(stem), axis=(1, 2))
        pixels = read_scaled(data.image_path(stem), data.description).astype(np.float64)
        sums += pixels.sum(), (pixels ** 2).sum()
    if not foreground.all():
        raise InputError(f"{data.folder}: no mask of the {len(stems)} training images shows "
                         f"{labels[foreground.argmin()]}; take this label out of the description, or annotate it")
    count = len(stems) * size[0] * size[1]
    mean, mean_of_squares = sums / count
    std = (mean_of_squares - mean ** 2) ** 0.5
    return round(float(mean), 6), round(float(std), 6), np.round(count / foreground - 1, 4).tolist()


if __name__ == "__main__":
    run_stage(main, get_args_parser())
