"""Prepares the radiographs of GRAZPEDWRI-DX: frontal ones only, 8 bit, right hands mirrored.

Mirrors as the authors' scripts/copy_and_process_imgs.py does.

    python -m scripts.copy_and_process_graz_imgs --source <folder with the published images>

Some minutes for all 10,086 frontal ones. A rerun skips what is there, and makes anew what its image or the
table has changed since. An image that can't be read is left out, and told of at the end.

Reads   <source>/**/<stem>.png, 16 bit (brought to 8 bit with adaptive histogram equalization) or 8 bit (as they are),
        and dataset.csv (columns filestem, laterality, projection)
Writes  <data_dir>/graz/img_only_front_all_left/<stem>.png
"""
import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from utils.cli import run_stage, stage_parser
from utils.datasets.description import load_description
from utils.datasets.image_files import list_names
from utils.digests import Origins, digest_files
from utils.errors import InputError
from utils.files import read_grey, write_png
from utils.left_out import leave_out
from utils.locks import check_writable, exclusive
from utils.names import plain
from utils.paths import DATA
from utils.tables import matching_stems

CLIP_LIMIT, TILES = 2.0, (8, 8)  # as the data set's own notebook makes its 8-bit images


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.copy_and_process_graz_imgs", __doc__)
    parser.add_argument("--source", type=Path, help="folder with the published images, also in folders inside it "
                                                    "(left out: <data_dir>/graz/images)")
    parser.add_argument("--dataset_csv", type=Path, help="the data set's table (left out: dataset.csv in "
                                                         "<data_dir>/graz or <data_dir>)")
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder of all data sets")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count(), help="images processed at the same time")
    return parser


def to_8_bit(image: np.ndarray) -> np.ndarray:
    """The 8-bit version of a radiograph, (H, W): uint16 is equalized locally, uint8 stays as it is."""
    if image.dtype == np.uint8:
        return image
    return cv2.createCLAHE(CLIP_LIMIT, TILES).apply((image // 256).astype(np.uint8))


def process(source: Path, target: Path, mirrored: bool) -> str | None:
    """Writes one image; gives the message if it can't be read, so that the others go on."""
    try:
        image = to_8_bit(read_grey(source))
    except InputError as error:
        return str(error)
    write_png(target, np.ascontiguousarray(image[:, ::-1]) if mirrored else image)
    return None


def find_images(source: Path) -> dict[str, Path]:
    """Stem -> file of all PNG images in a folder and those inside it. Raises InputError: none, or a stem twice."""
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; --source names the folder with the published images")
    images: dict[str, Path] = {}
    for path in (source / name for name in list_names(source)):
        stem = plain(path.stem)
        if path.suffix.lower() != ".png":
            continue
        if stem in images:
            raise InputError(f"{path}: the same image is in {images[stem].parent} too; let --source name one")
        images[stem] = path
    if not images:
        raise InputError(f"{source}: no PNG image in it; --source names the folder with the published images")
    return images


def main(args: argparse.Namespace) -> None:
    description = load_description("graz", args.data_dir)
    folder, table = args.data_dir / description.name, description.metadata
    images = find_images(args.source or folder / "images")
    table_path = args.dataset_csv or description.locate(folder, table.file)
    frontal = matching_stems(table_path, table.stem_column, table.keep, {}, images)
    right = matching_stems(table_path, table.stem_column, table.mirror, table.as_is, frontal & images.keys())
    target = folder / description.image_folder
    wanted = [stem for stem in images if stem in frontal]
    if not wanted:
        raise InputError(f"{table_path}: lists none of the {len(images)} images as frontal; images and table must "
                         "belong together")
    digests = digest_files([images[stem] for stem in wanted], folder / "digests.json")
    origins = {target / f"{stem}.png": f"{digest} {'mirrored' if stem in right else 'not mirrored'}"
               for stem, digest in zip(wanted, digests, strict=True)}
    with exclusive(target), Origins(folder / "prepared.json") as known:
        todo = known.outdated(origins)
        check_writable(target)
        unreadable = {}
        with ThreadPoolExecutor(max(args.num_workers, 1)) as pool:  # OpenCV works outside Python's lock
            errors = pool.map(lambda path: process(images[path.stem], path, path.stem in right), todo)
            for path, error in tqdm(zip(todo, errors, strict=True), "preprocess", len(todo), unit="image"):
                if error:
                    unreadable[path.stem] = error
                else:
                    known.note(path, origins[path])
    print(f"{len(images)} images, {len(wanted)} frontal: {len(todo) - len(unreadable)} written to {target}, "
          f"{len(wanted) - len(todo)} were there")
    leave_out(unreadable, folder)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
