"""Masks of all images in a folder, at each image's own size.

    python -m scripts.predict_folder --model_id ID --images FOLDER --out DIR
    python -m scripts.predict_folder --model_id ID --images FOLDER --out DIR --refine --refinement recommended

PNG, JPEG, TIFF and BMP of 8 to 16 bits, and DICOM by the package pydicom; folders inside keep their
place. Images are taken as they are: where the data set mirrors some (right hands of GRAZPEDWRI-DX), mirror those of
other sources before. A rerun does what is missing. Images that can't be read are listed at the end, with exit code 3.

Reads   a model by its id, its data set, the images; with `--refine` SAM's weights
Writes  DIR/masks/<image>.png, a label map (value v: the v-th label), or where labels overlap
        DIR/masks/<image>.<label>.png, white on black; DIR/overlays/<image>.png with a legend; DIR/masks.json:
        of each image its size, its files, of each label the area in pixels and with SAM the estimated Dice; and the
        images that failed
"""
import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from unet_training.models import DataOptions, TrainedModel
from unet_training.new_images import Predictor
from unet_training.pseudo_labels import Raw, SamRefined
from utils.cli import run_stage, select_device, stage_parser
from utils.datasets.dicom import SUFFIXES as DICOM_SUFFIXES
from utils.datasets.dicom import is_dicom
from utils.datasets.image_files import list_names
from utils.errors import InputError
from utils.files import atomic_path, write_png
from utils.options import add_options, options_from
from utils.overlay import add_legend, class_colors, overlay, shrink, to_grey
from utils.tracking.models import fetch_model

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
LONGEST = 1024  # pixels of an overlay's longer side
SOME_FAILED = 3  # exit code
SAVED_EVERY = 10  # seconds


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.predict_folder", __doc__)
    parser.add_argument("--model_id", required=True, help="the network")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="the images")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the masks")
    parser.add_argument("--refine", action="store_true", help="let SAM refine the masks")
    add_options(parser, DataOptions, only=("data_dir",))
    parser.add_argument("--gpu_id", type=int, help="GPU to use (left out: the first one, or the CPU)")
    SamRefined.add_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file that lists the masks. Exits with code 3 where an image couldn't be read."""
    record = fetch_model(args.model_id)
    data = replace(options_from(DataOptions, args), dataset=record.parameters["dataset"]).open()
    model = TrainedModel.load(record, data, select_device(args.gpu_id))
    labels = SamRefined.from_args(args, model.data) if args.refine else Raw()
    folder = Folder(args.images, args.out, Predictor(model, labels))
    failed = folder.run()
    print(f"masks, overlays and areas: {folder.table}")
    if labels.notice:
        print(f"refined masks: {labels.notice}")
    if failed:
        print(*(f"not read: {text}" for text in failed), f"{len(failed)} images failed", sep="\n", file=sys.stderr)
        sys.exit(SOME_FAILED)
    return folder.table


class Folder:
    """Images and where their masks go."""

    def __init__(self, images: Path, out: Path, predictor: Predictor):
        """Raises InputError if there is no image, or what lies in `out` was made in another way."""
        self.images, self.out, self.predictor = images, out, predictor
        self.table = out / "masks.json"
        self.names = name_images(images, out)
        self._labels = predictor.model.data.description.labels
        self._made = {"model_id": predictor.model.id, "masks": predictor.labels.variant,
                      "made_with": predictor.labels.attributes(predictor.model), "labels": list(self._labels)}
        self._entries = self._read_entries()

    def _read_entries(self) -> dict[str, dict[str, Any]]:
        """Those of an earlier run, by image."""
        if not self.table.is_file():
            return {}
        try:
            known = json.loads(self.table.read_text(encoding="utf-8"))
            entries = {entry["image"]: entry for entry in known["images"]}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.table}: not readable ({error}); remove it") from None
        if difference := [name for name, value in self._made.items() if known.get(name) != value]:
            name = difference[0]
            raise InputError(f"{self.table}: was made with {name} = {known.get(name)}, this run has "
                             f"{self._made[name]}; name another --out")
        return entries

    def run(self) -> list[str]:
        """Makes what is missing; returns what is wrong with the images that can't be read."""
        failed, saved = {}, time.monotonic()
        try:
            for image, name in tqdm(self.names.items(), "images", unit="image"):
                try:
                    state = file_state(self.images / image)
                    if self._is_done(image, state):
                        continue
                    self._remove_old(image)
                    self._entries[image] = {"image": image, **state, **self._predict(self.images / image, name)}
                except InputError as error:
                    failed[image] = str(error)
                if time.monotonic() - saved > SAVED_EVERY:
                    self._save(failed)
                    saved = time.monotonic()
        finally:
            self._save(failed)
        return list(failed.values())

    def _is_done(self, image: str, state: dict[str, int]) -> bool:
        entry = self._entries.get(image)
        return (entry is not None and state.items() <= entry.items()
                and all((self.out / file).is_file() for file in (*entry["files"], entry["overlay"])))

    def _remove_old(self, image: str) -> None:
        for file in self._entries.pop(image, {"files": ()})["files"]:
            (self.out / file).unlink(missing_ok=True)

    def _save(self, failed: dict[str, str]) -> None:
        entries = [self._entries[image] for image in self.names if image in self._entries]
        table = {**self._made, "notice": self.predictor.labels.notice, "images": entries,
                 "failed": [{"image": image, "error": error} for image, error in failed.items()]}
        with atomic_path(self.table) as temporary:
            temporary.write_text(json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")

    def _predict(self, source: Path, name: str) -> dict[str, Any]:
        """Writes masks and overlay of one image; returns its entry."""
        grey = self.predictor.read(source)
        masks, estimates = self.predictor.predict(grey, source)
        estimates = np.full(len(masks), np.nan) if estimates is None else estimates
        areas = np.count_nonzero(masks, axis=(1, 2)).tolist()
        colors = class_colors(len(masks))
        shown = [(f"{label} {estimate:.2f}".removesuffix(" nan"), color) for label, estimate, color, area in
                 zip(self._labels, estimates, colors, areas, strict=True) if area]
        picture = f"overlays/{name}.png"
        write_png(self.out / picture, add_legend(overlay(shrink(to_grey(grey), LONGEST), masks, colors), shown))
        values = {label: {"area": area, "estimated_dice": None if np.isnan(estimate) else round(float(estimate), 4)}
                  for label, area, estimate in zip(self._labels, areas, estimates, strict=True)}
        return {"width": masks.shape[2], "height": masks.shape[1], "overlay": picture,
                "files": write_masks(self.out, f"masks/{name}", masks, self._labels), "labels": values}


def name_images(folder: Path, out: Path) -> dict[str, str]:
    """Path of each image in the folder -> that of its masks, without suffix where no other image has that name.

    Raises InputError if there is none.
    """
    names, inside = map(Path, list_names(folder)), out.resolve()
    paths = [name for name in names if inside not in (folder / name).resolve().parents
             and (name.suffix.lower() in (*SUFFIXES, *DICOM_SUFFIXES) or is_dicom(folder / name))]
    if not paths:
        raise InputError(f"{folder}: holds no image ({', '.join(SUFFIXES)}, DICOM); name another folder with --images")
    count = Counter(path.with_suffix("") for path in paths)
    return {path.as_posix(): (path.with_suffix("") if count[path.with_suffix("")] == 1 else path).as_posix()
            for path in paths}


def file_state(path: Path) -> dict[str, int]:
    """What tells that an image was replaced. Raises InputError where it can't be opened."""
    try:
        with path.open("rb"):
            stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make it readable, or remove it") from None
    return {"bytes": stat.st_size, "changed": stat.st_mtime_ns}


def write_masks(out: Path, name: str, masks: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Writes the masks of one image, bool (C, H, W); returns the files in `out`: one, or as many as there are labels
    where these overlap."""
    if masks.sum(axis=0, dtype=np.uint16).max() <= 1:
        values = np.arange(1, len(masks) + 1, dtype=np.uint8 if len(masks) < 256 else np.uint16)
        write_png(out / f"{name}.png", (masks * values[:, None, None]).sum(axis=0, dtype=values.dtype))
        return [f"{name}.png"]
    files = [f"{name}.{as_file_name(label)}.png" for label in labels]
    for file, mask in zip(files, masks, strict=True):
        write_png(out / file, np.uint8(255) * mask)
    return files


def as_file_name(label: str) -> str:
    """With the code of each character that some file systems don't take."""
    return re.sub(r'[<>:"/\\|?*%]', lambda match: f"%{ord(match[0]):02X}", label)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
