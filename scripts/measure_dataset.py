"""Measures what the description of a data set says of its training images, for your own data.

    python -m scripts.measure_dataset --dataset NAME

Write what it prints into <data_dir>/NAME/description.toml, anywhere above the first [table].

Reads   the training images and their masks, and the description, which need not have these keys yet
Writes  nothing
"""
import argparse
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from tqdm import tqdm

from utils.cli import run_stage, stage_parser
from utils.datasets.annotated import AnnotatedImages, open_dataset, read_scaled
from utils.datasets.description import MEASURED, DatasetDescription
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
    description, values = data.description, {}
    if description.max_grey_value is None and (max_grey_value := measure_max_grey_value(data)):
        description = replace(description, max_grey_value=max_grey_value)
        values["max_grey_value"] = max_grey_value
    values.update(zip(MEASURED, measure(data, description), strict=True))
    for key, value in values.items():
        print(f"{key} = {value}")
    return values


def measure_max_grey_value(data: AnnotatedImages) -> int | None:
    """The largest number of as many bits as the training images use of 16; None if that is all of them, or they have 8.

    Radiographs of 10 or 12 bits in files of 16 would be nearly black.
    """
    images = (read_grey(data.image_path(stem)) for stem in data.stems("train"))
    used = max((int(image.max()).bit_length() for image in images if image.dtype == np.uint16), default=16)
    return 2 ** used - 1 if used < 16 else None


def measure(data: AnnotatedImages, description: DatasetDescription) -> tuple[float, float, list[float]]:
    """Measures the training images as the network gets them.

    Args:
        description: how the images are read
    Returns:
        mean and standard deviation of the images at input size, scaled to [0, 1], and for each label the number of
        background pixels over that of foreground pixels
    Raises:
        InputError: no training mask shows a label.
    """
    labels, size = description.labels, description.input_size
    foreground, sums, stems = np.zeros(len(labels)), np.zeros(2), data.stems("train")
    for stem in tqdm(stems, desc="training images", unit="image", leave=False):
        foreground += np.count_nonzero(data.mask(stem), axis=(1, 2))
        pixels = read_scaled(data.image_path(stem), description).astype(np.float64)
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
