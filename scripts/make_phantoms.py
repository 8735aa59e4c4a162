"""Makes the phantoms: computed radiographs of children's wrists.

    python -m scripts.make_phantoms                         # 183 images, about half a minute on two cores
    python -m scripts.make_phantoms --num_unlabeled 20     # fewer of the unlabeled ones
    python -m scripts.make_phantoms --write_annotations     # only draws the shapes anew and writes the two XML files

Reads   annotations_train.xml (43 training and 10 validation images), annotations_test.xml (10)
Writes  data/phantom/unlabeled_ground_truth.xml               shapes of the 120 unlabeled images, for measuring only
        data/phantom/img_only_front_all_left/<stem>.png  8 bit, right hands mirrored to look like left ones

The images depend on the shapes in the XML files and a fixed seed, to the last bit. A rerun draws those that are
missing, and those whose shapes have changed since.
"""
import argparse
import hashlib
import os
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
from tqdm import tqdm

from scripts.phantoms.anatomy import sample_image
from scripts.phantoms.cvat import write_cvat
from scripts.phantoms.radiograph import render
from utils.cli import run_stage, stage_parser
from utils.datasets.cvat import CvatImage, parse_cvat
from utils.digests import Origins
from utils.errors import InputError
from utils.files import write_png
from utils.locks import check_writable, exclusive
from utils.paths import DATA, ROOT

TRAIN, VALIDATION, TEST = range(1, 44), range(44, 54), range(54, 64)
FIRST_UNLABELED, NUM_UNLABELED = 64, 120
IMAGE_FOLDER, GROUND_TRUTH_FILE = "img_only_front_all_left", "unlabeled_ground_truth.xml"


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.make_phantoms", __doc__)
    parser.add_argument("--data_dir", type=Path, default=DATA, help="images go to its folder phantom/")
    parser.add_argument("--annotations_dir", type=Path, default=ROOT, help="where the two annotation files lie")
    parser.add_argument("--num_unlabeled", type=int, default=NUM_UNLABELED, help="unlabeled images, at most 120")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="processes that draw")
    parser.add_argument("--write_annotations", action="store_true",
                        help="write annotations_train.xml and annotations_test.xml from the seed, and stop")
    return parser


def main(args: argparse.Namespace) -> None:
    if not 0 <= args.num_unlabeled <= NUM_UNLABELED:
        raise InputError(f"--num_unlabeled {args.num_unlabeled}: give a number from 0 to {NUM_UNLABELED}")
    if args.write_annotations:
        write_annotations(args.annotations_dir)
        return
    folder = args.data_dir / "phantom"
    labeled = [image for name in ("annotations_train.xml", "annotations_test.xml")
                for image in parse_cvat(args.annotations_dir / name)]
    numbers = range(FIRST_UNLABELED, FIRST_UNLABELED + args.num_unlabeled)
    if numbers:
        write_cvat(folder / GROUND_TRUTH_FILE, [sample_image(number, None) for number in numbers])
        labeled += parse_cvat(folder / GROUND_TRUTH_FILE)
    draw_images(labeled, folder / IMAGE_FOLDER, args.num_workers)
    print(f"{len(labeled)} radiographs in {folder / IMAGE_FOLDER}")


def write_annotations(folder: Path) -> None:
    """Draws the labeled shapes from the seed and writes both files into `folder`."""
    train = [sample_image(number, "Train") for number in TRAIN]
    train += [sample_image(number, "Validation") for number in VALIDATION]
    write_cvat(folder / "annotations_train.xml", train)
    write_cvat(folder / "annotations_test.xml", [sample_image(number, "Test") for number in TEST])


def draw_images(images: list[CvatImage], folder: Path, num_workers: int) -> None:
    """Draws the images that are not in `folder` yet, or whose shapes were others then, each in one of `num_workers`
    processes."""
    by_path = {folder / f"{image.stem}.png": image for image in images}
    with exclusive(folder), Origins(folder.parent / "prepared.json") as known:
        missing = known.outdated(origins := {path: _digest_shapes(image) for path, image in by_path.items()})
        if not missing:
            return
        check_writable(folder)
        context = get_context("spawn")  # a fork would copy OpenCV's threads half-way and hang
        with context.Pool(min(num_workers, len(missing)), initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            drawn = pool.imap(partial(draw_image, folder=folder), [by_path[path] for path in missing])
            for path, _ in tqdm(zip(missing, drawn, strict=True), "draw radiographs", len(missing), unit="image"):
                known.note(path, origins[path])


def _digest_shapes(image: CvatImage) -> str:
    shapes = [(shape.anatomy, shape.rle, shape.ellipse, None if shape.polygon is None else shape.polygon.tolist())
              for shape in image.shapes]
    return hashlib.sha256(repr((image.width, image.height, shapes)).encode()).hexdigest()


def draw_image(image: CvatImage, folder: Path) -> None:
    """Draws one radiograph and writes it as PNG; right hands are mirrored."""
    pixels = render(image)
    write_png(folder / f"{image.stem}.png", pixels[:, ::-1].copy() if "-R1_" in image.stem else pixels)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
