"""Prepares the chest radiographs of JSRT: images, and masks drawn from their landmarks.

    python -m scripts.prepare_jsrt --source ../shared/data/jsrt

Takes some seconds. A rerun skips what is there.

Reads   <source>/images/<stem>.png, or <stem>.IMG as JSRT distributes them (2048 x 2048 values of 12 bits; inverted as
        Chest-xray-landmark-dataset does, and averaged to 256 x 256), and the landmarks (x, y) of that data set:
        <source>/landmarks/{RL,LL,H,RCLA,LCLA}/<stem>.npy as it publishes them, in pixels of 1024 x 1024; or
        <source>/landmarks/<stem>.npy with all 166 of them in that order, in pixels of the image. An image without
        landmarks is left out
Writes  <data_dir>/jsrt/img/<stem>.png and <data_dir>/jsrt/masks.h5 (5 classes, at the size of the images)
"""
import argparse
from pathlib import Path

import cv2
import numpy as np
from skimage.draw import polygon2mask
from tqdm import tqdm

from utils.cli import run_stage, stage_parser
from utils.datasets.description import load_description
from utils.datasets.image_files import find_files
from utils.digests import Origins, digest_file, digest_files
from utils.errors import InputError
from utils.files import image_size, read_grey, write_png
from utils.locks import exclusive
from utils.mask_store import MaskWriter
from utils.names import name_some
from utils.options import positive_int
from utils.paths import DATA

NUM_POINTS = {"right_lung": 44, "left_lung": 50, "heart": 26, "right_clavicle": 23, "left_clavicle": 23}
ORGAN_FOLDERS = ("RL", "LL", "H", "RCLA", "LCLA")  # in the order of NUM_POINTS
PUBLISHED_SIZE = 1024  # pixels, to which landmarks in folders of organs refer
RAW_SIDE, RAW_VALUES = 2048, 4096  # of JSRT's own files
SUFFIXES = (".png", ".img", ".tif", ".bmp")


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.prepare_jsrt", __doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds images/ and landmarks/")
    parser.add_argument("--landmark_size", type=positive_int, metavar="PIXELS",
                        help="side of the square image whose pixels the landmarks count (left out: 1024 for those in "
                             "folders of organs, else that of the image)")
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder of all data sets")
    return parser


def read_landmarks(folder: Path, stem: str) -> np.ndarray:
    """The contour points of all classes, float, (166, 2) as x, y in pixels. Raises InputError for anything else."""
    if (folder / ORGAN_FOLDERS[0]).is_dir():
        return np.concatenate([_read_points(folder / organ / f"{stem}.npy", count)
                               for organ, count in zip(ORGAN_FOLDERS, NUM_POINTS.values(), strict=True)])
    return _read_points(folder / f"{stem}.npy", sum(NUM_POINTS.values()))


def _read_points(path: Path, count: int) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path}: no such landmarks; get the whole folder landmarks/ of Chest-xray-landmark-dataset")
    try:
        points = np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy raises whatever the damage leads to
        raise InputError(f"{path}: not a readable NumPy file ({error}); get it again") from None
    if getattr(points, "shape", None) != (count, 2) or points.dtype.kind not in "fiu" or not np.isfinite(points).all():
        raise InputError(f"{path}: must hold {count} points x, y; get it again")
    return points


def place_landmarks(points: np.ndarray, size: tuple[int, int], landmark_size: int | None, what: str) -> np.ndarray:
    """Landmarks in pixels of an image of that size (H, W).

    Args:
        points: (166, 2) as x, y
        landmark_size: side of the square image in whose pixels they are; None: already in those of this one
    Raises:
        InputError: they lie beyond the image, or in one half of it alone, as those of a larger image do. A chest fills
            the image.
    """
    height, width = size
    if landmark_size:
        points = points * np.array([width, height]) / landmark_size
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    if min(left, top) < -1 or right > width + 1 or bottom > height + 1 or right < width / 2 or bottom < height / 2:
        raise InputError(f"{what}: its landmarks reach from x, y = {left:.0f}, {top:.0f} to {right:.0f}, {bottom:.0f}, "
                         f"the image is {width} x {height} pixels; say on an image of which size they were drawn, "
                         f"such as `--landmark_size {PUBLISHED_SIZE}` for the published ones")
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


def read_raw(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A file of JSRT's own at a smaller size (H, W), uint8: big-endian numbers of 12 bits, of which 0 is white.

    Inverted as aux/Preprocess-JSRT.ipynb of Chest-xray-landmark-dataset does, and averaged over areas.

    Raises:
        InputError: it isn't of the size of those files.
    """
    values = np.fromfile(path, ">u2")
    if path.stat().st_size != 2 * RAW_SIDE ** 2 or values.max() >= RAW_VALUES:
        raise InputError(f"{path}: not a file of JSRT's, which hold {RAW_SIDE} x {RAW_SIDE} numbers below {RAW_VALUES} "
                         "of two bytes; get it again")
    bright = 1 - values.reshape(RAW_SIDE, RAW_SIDE).astype(np.float32) / RAW_VALUES
    return (255 * cv2.resize(bright, size[::-1], interpolation=cv2.INTER_AREA)).astype(np.uint8)


def find_stems(source: Path) -> dict[str, Path]:
    """Stem -> image of those that have landmarks, sorted; says which have none. Raises InputError: there is none."""
    for folder in ("images", "landmarks"):
        if not (source / folder).is_dir():
            raise InputError(f"{source / folder}: no such folder; --source names the folder that holds images/ and "
                             "landmarks/")
    images, landmarks = find_files(source / "images", SUFFIXES), source / "landmarks"
    if images.left_out:
        print(f"left out: {'; '.join(images.describe('images'))}")
    contours = landmarks / ORGAN_FOLDERS[0] if (landmarks / ORGAN_FOLDERS[0]).is_dir() else landmarks
    complete = {stem: path for stem, path in images.paths.items() if (contours / f"{stem}.npy").is_file()}
    if not complete:
        raise InputError(f"{source}: none of its {len(images.paths)} images has landmarks in {contours}; put those of "
                         f"Chest-xray-landmark-dataset there, as folders {', '.join(ORGAN_FOLDERS)}")
    if len(complete) < len(images.paths):
        print(f"left out, no landmarks: {name_some([stem for stem in images.paths if stem not in complete], 10)}")
    return complete


def main(args: argparse.Namespace) -> None:
    description = load_description("jsrt", args.data_dir)
    folder, landmarks = args.data_dir / description.name, args.source / "landmarks"
    images = find_stems(args.source)
    landmark_size = args.landmark_size
    if landmark_size is None and (landmarks / ORGAN_FOLDERS[0]).is_dir():
        landmark_size = PUBLISHED_SIZE
    of_images = digest_files(list(images.values()), folder / "digests.json")
    origins = {folder / description.image_folder / f"{stem}.png": f"{digest} {description.input_size}"
               for stem, digest in zip(images, of_images, strict=True)}
    of_masks = {path.stem: f"{origin} {_digest_landmarks(landmarks, path.stem)} {landmark_size}"
                for path, origin in origins.items()}
    mask_file = folder / description.masks.file
    with exclusive(mask_file), Origins(folder / "prepared.json") as known:
        writer = MaskWriter(mask_file, description.labels, {"made_by": "scripts.prepare_jsrt"})
        unmasked = set(writer.missing(list(images), of_masks))
        outdated = set(known.outdated(origins))
        todo = [path for path in origins if path in outdated or path.stem in unmasked]
        points = {}
        for stem in sorted(unmasked):  # all before anything is written
            size = description.input_size if _is_raw(images[stem]) else image_size(images[stem])
            points[stem] = place_landmarks(read_landmarks(landmarks, stem), size, landmark_size, stem)
        if todo:
            with writer:
                for path in tqdm(todo, desc="prepare", unit="image"):
                    stem, source = path.stem, images[path.stem]
                    image = read_raw(source, description.input_size) if _is_raw(source) else read_grey(source)
                    write_png(path, image)
                    known.note(path, origins[path])
                    if stem in unmasked:
                        writer.write(stem, draw_contours(points[stem], image.shape), image=of_masks[stem])
    print(f"{len(images)} images with masks in {folder}, {len(todo)} of them new")


def _digest_landmarks(landmarks: Path, stem: str) -> str:
    files = [folder / f"{stem}.npy" for folder in (landmarks, *(landmarks / name for name in ORGAN_FOLDERS))]
    return "".join(digest_file(file) for file in files if file.is_file())


def _is_raw(path: Path) -> bool:
    return path.suffix.lower() == ".img"


if __name__ == "__main__":
    run_stage(main, get_args_parser())
