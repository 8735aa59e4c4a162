"""Prepares the chest radiographs of JSRT: images, and masks drawn from their landmarks.

    python -m scripts.prepare_jsrt --source ../shared/data/jsrt

Takes some seconds. A rerun skips what is there.

Reads   <source>/images/<stem>.png and <source>/landmarks/<stem>.npy (166 points x, y in pixels of the image); an image
        without landmarks is left out
Writes  <data_dir>/jsrt/img/<stem>.png (8 bit) and <data_dir>/jsrt/masks.h5 (5 classes, at the size of the images)
"""
import argparse
from pathlib import Path

import numpy as np
from skimage.draw import polygon2mask
from tqdm import tqdm

from utils.cli import run_stage, stage_parser
from utils.datasets.description import load_description
from utils.errors import InputError
from utils.files import read_grey, write_png
from utils.mask_store import MaskWriter
from utils.paths import DATA

NUM_POINTS = {"right_lung": 44, "left_lung": 50, "heart": 26, "right_clavicle": 23, "left_clavicle": 23}


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.prepare_jsrt", __doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds images/ and landmarks/")
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder of all data sets")
    return parser


def read_landmarks(path: Path) -> np.ndarray:
    """The contour points of all classes, float, (166, 2) as x, y in pixels. Raises InputError for anything else."""
    try:
        points = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: not a readable NumPy file ({error}); get it again") from None
    needed = (sum(NUM_POINTS.values()), 2)
    if getattr(points, "shape", None) != needed or points.dtype.kind not in "fiu" or not np.isfinite(points).all():
        raise InputError(f"{path}: must hold {needed[0]} points x, y; get it again")
    return points


def draw_contours(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Closed polygons through the points of each class.

    Args:
        points: (166, 2) as x, y in pixels, the classes one after another
        shape: (H, W) of the image
    Returns:
        bool, (5, H, W)
    """
    contours = np.split(points, np.cumsum(list(NUM_POINTS.values()))[:-1])
    return np.stack([polygon2mask(shape, contour[:, ::-1]) for contour in contours])


def find_stems(source: Path) -> list[str]:
    """Sorted stems that have an image and landmarks; says which images have none. Raises InputError: there is none."""
    for folder in ("images", "landmarks"):
        if not (source / folder).is_dir():
            raise InputError(f"{source / folder}: no such folder; --source names the folder that holds images/ and "
                             "landmarks/")
    stems = sorted(path.stem for path in (source / "images").glob("*.png"))
    complete = [stem for stem in stems if (source / "landmarks" / f"{stem}.npy").is_file()]
    if not complete:
        raise InputError(f"{source}: none of its {len(stems)} images has landmarks; see data/README.md for where to "
                         "get them")
    if len(complete) < len(stems):
        print(f"left out, no landmarks: {', '.join(sorted(set(stems) - set(complete)))}")
    return complete


def main(args: argparse.Namespace) -> None:
    description = load_description("jsrt")
    folder = args.data_dir / description.name
    stems = find_stems(args.source)
    writer = MaskWriter(folder / description.masks.file, description.labels, {"made_by": "scripts.prepare_jsrt"})
    unmasked = set(writer.missing(stems))
    targets = {stem: folder / description.image_folder / f"{stem}.png" for stem in stems}
    todo = [stem for stem in stems if stem in unmasked or not targets[stem].exists()]
    if todo:
        with writer:
            for stem in tqdm(todo, desc="prepare", unit="image"):
                image = read_grey(args.source / "images" / f"{stem}.png")
                write_png(targets[stem], image)
                if stem in unmasked:
                    points = read_landmarks(args.source / "landmarks" / f"{stem}.npy")
                    writer.write(stem, draw_contours(points, image.shape))
    print(f"{len(stems)} images with masks in {folder}, {len(todo)} of them new")


if __name__ == "__main__":
    run_stage(main, get_args_parser())
