"""Measures what the description of a data set says of its training images, for your own data.

    python -m scripts.measure_dataset --dataset NAME

Write what it prints into <data_dir>/NAME/description.toml, anywhere above the first [table]. What is behind # is for
you: what was read and what was left out, how often each label occurs, images that look like negatives.

Reads   the training images and their masks, and the description, which need not have these keys yet
Writes  nothing
"""
import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from tqdm import tqdm

from utils.cli import run_stage, stage_parser
from utils.datasets.annotated import AnnotatedImages, open_dataset, read_scaled
from utils.datasets.description import MEASURED, DatasetDescription
from utils.errors import InputError
from utils.files import read_grey
from utils.grey import find_maximum
from utils.names import name_some
from utils.paths import DATA

MOSTLY = 0.9  # of the images
MOST_COMPARED = 500
SIDE = 32  # pixels, at which images are compared
NEGATIVE = -0.3  # correlation


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.measure_dataset", __doc__)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="the folder in <data_dir>")
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder of all data sets")
    return parser


def main(args: argparse.Namespace) -> dict[str, object]:
    """Returns the keys and their values."""
    data = open_dataset(args.dataset, args.data_dir, measured=False)
    description, values = data.description, {}
    if description.max_grey_value is None and description.grey_range in (None, "bits") and (
            max_grey_value := measure_max_grey_value(data)):
        description = replace(description, max_grey_value=max_grey_value)
        values["max_grey_value"] = max_grey_value
    *measured, table = measure(data, description)
    values.update(zip(MEASURED, measured, strict=True))
    print(f"# {data.describe()}")
    for row in [("label", "shapes", "training images", "% of pixels"), *table]:
        print("# {:<24}{:>10}{:>18}{:>14}".format(*row))
    for hint in find_negatives(data, description):
        print(f"# {hint}")
    for key, value in values.items():
        print(f"{key} = {value}")
    return values


def measure_max_grey_value(data: AnnotatedImages) -> int | None:
    """The largest number of as many bits as nearly all training images of 16 bits use; None if that is all of them, or
    images use different ones, or have 8.

    Radiographs of 10 or 12 bits in files of 16 would be nearly black.
    """
    images = (read_grey(data.image_path(stem)) for stem in data.stems("train"))
    used = Counter(find_maximum(image) for image in images if image.dtype == np.uint16)
    if not used:
        return None
    largest, count = used.most_common(1)[0]
    if count < MOSTLY * used.total():
        print("# images use different numbers of bits, so each is read with its own: "
              + ", ".join(f"{number} up to {value}" for value, number in sorted(used.items())))
        return None
    return largest if largest < np.iinfo(np.uint16).max else None


def find_negatives(data: AnnotatedImages, description: DatasetDescription) -> Iterator[str]:
    """Names images that are dark where the others are bright, of up to `MOST_COMPARED`."""
    stems = data.select(include_annotated=True)
    stems = stems[::-(-len(stems) // MOST_COMPARED)]
    small = replace(description, input_size=(SIDE, SIDE))
    pixels = np.stack([read_scaled(data.image_path(stem), small).ravel() for stem in
                       tqdm(stems, desc="compare images", unit="image", leave=False)]).astype(np.float64)
    pixels -= pixels.mean(axis=1, keepdims=True)
    pixels /= np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-9)
    others = pixels.sum(axis=0) - pixels
    likeness = (pixels * others).sum(axis=1) / np.maximum(np.linalg.norm(others, axis=1), 1e-9)
    for stem, value in zip(stems, likeness, strict=True):
        if value < NEGATIVE:
            yield (f"{data.image_path(stem)}: looks like the negative of the other images (correlation {value:.2f}); "
                   "save it inverted, or write `invert = true` where it is the others that are wrong")


def measure(data: AnnotatedImages, description: DatasetDescription
            ) -> tuple[float, float, list[float], list[tuple[str, ...]]]:
    """Measures the training images as the network gets them.

    Args:
        description: how the images are read
    Returns:
        mean and standard deviation of the images at input size, scaled to [0, 1]; for each label the number of
        background pixels over that of foreground pixels; and a row of a table for each label: its name, how many shapes
        it has, how many images show it, its share of the pixels
    Raises:
        InputError: no training mask shows a label.
    """
    labels, size = description.labels, description.input_size
    foreground, showing = np.zeros(len(labels)), np.zeros(len(labels), int)
    sums, stems, empty = np.zeros(2), data.stems("train"), []
    for stem in tqdm(stems, desc="training images", unit="image", leave=False):
        pixels_of = np.count_nonzero(data.mask(stem), axis=(1, 2))
        foreground += pixels_of
        showing += pixels_of > 0
        empty += [stem] if not pixels_of.any() else []
        pixels = read_scaled(data.image_path(stem), description).astype(np.float64)
        sums += pixels.sum(), (pixels ** 2).sum()
    if not foreground.all():
        raise InputError(f"{data.folder}: no mask of the {len(stems)} training images shows "
                         f"{labels[foreground.argmin()]}; take this label out of the description, or annotate it")
    if empty:
        print(f"# {len(empty)} training images show no label: {name_some(empty)}")
    count = len(stems) * size[0] * size[1]
    mean, mean_of_squares = sums / count
    std = (mean_of_squares - mean ** 2) ** 0.5
    shapes = data.shapes or dict.fromkeys(labels, "-")
    table = [(label, str(shapes[label]), str(images), f"{100 * share:.2f}")
             for label, images, share in zip(labels, showing, foreground / count, strict=True)]
    return round(float(mean), 6), round(float(std), 6), np.round(count / foreground - 1, 4).tolist(), table


if __name__ == "__main__":
    run_stage(main, get_args_parser())
