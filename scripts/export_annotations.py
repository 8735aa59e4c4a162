"""Writes saved pseudo labels as annotations, for a human to correct in the tool that the annotations came from.

    python -m scripts.export_annotations --model_id ID --format cvat --worst 50 --with_images
    python -m scripts.export_annotations --model_id ID --format coco --pseudo_label raw

Each mask is brought to the size of its image, and mirrored back where the data set mirrors. The images of which SAM is
least sure come first, by the mean of its estimates; those in which nothing was found before them.

Reads   the masks that a saving stage wrote for the model, the images' sizes
Writes  results/<dataset>/<model id>/<variant of the masks>_<format>/: annotations.xml (CVAT for images 1.1: polygons,
        pixels of components that have holes; SAM's estimate as the attribute estimated_dice) with labels.json for
        CVAT's constructor of labels, or annotations.json (COCO; the estimate as score); estimates.csv in percent, in
        the same order; with `--with_images` the images as they were annotated
"""
import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from unet_training.models import TrainedModel, add_model_arguments
from unet_training.pseudo_labels import PSEUDO_LABELS, add_pseudo_label_argument, add_pseudo_label_options
from unet_training.saved_masks import open_saved_masks
from utils.cli import run_stage, stage_parser
from utils.datasets.annotated import AnnotatedImages
from utils.datasets.cvat import find_label
from utils.datasets.sources import CvatMasks
from utils.datasets.writers import CvatLabels, ExportedImage, write_coco, write_cvat
from utils.errors import InputError
from utils.files import atomic_path, image_size, write_png
from utils.full_size import resize_masks_smoothly
from utils.mask_store import MaskStore
from utils.options import add_options, option, options_from, positive_float, positive_int
from utils.paths import RESULTS, ROOT
from utils.tables import write_rows


@dataclass(frozen=True)
class ExportOptions:
    """What is written, and how."""

    format: str = option("cvat", "of the annotations", choices=("cvat", "coco"))
    worst: int | None = option(None, "only so many images, those that SAM is least sure of", type=positive_int,
                               metavar="COUNT")
    shapes: str = option("polygon", "cvat: outlines, or every pixel", choices=("polygon", "mask"))
    tolerance: float = option(1.0, "cvat: how far an outline may lie off", type=positive_float, metavar="PIXELS")
    cvat_label: str | None = option(None, "cvat: the label of all shapes, where the data set's annotations tell them "
                                    "apart by an attribute (left out: that of these annotations)", metavar="LABEL")
    with_images: bool = option(False, "copy the images, too")


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.export_annotations", __doc__)
    add_model_arguments(parser)
    add_options(parser, ExportOptions)
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of the results")
    add_pseudo_label_argument(parser, default="sam")
    add_pseudo_label_options(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file of annotations."""
    model = TrainedModel.from_args(args)
    labels, options = PSEUDO_LABELS[args.pseudo_label].from_args(args, model.data), options_from(ExportOptions, args)
    store = open_saved_masks(labels, model)
    export = Export(model.data, store, set(model.labeled_stems()), options.worst)
    folder = args.results_dir / model.data.description.name / model.id / f"{labels.variant}_{options.format}"
    path = export.write(folder, options)
    print(f"annotations of {len(export.stems)} images: {path}")
    if labels.notice:
        print(f"refined masks: {labels.notice}")
    return path


class Export:
    """Saved masks of images that aren't labeled, the least sure first."""

    def __init__(self, data: AnnotatedImages, store: MaskStore, labeled: set[str], worst: int | None = None):
        """Raises InputError if the worst are asked for and nothing was estimated, or an image isn't there."""
        self._data, self._store = data, store
        stems = [stem for stem in store.stems if stem not in labeled]
        means = {stem: np.nan_to_num(mean_of(self.estimates(stem)), nan=-1) for stem in stems}
        if worst is not None and max(means.values(), default=-1) < 0:
            raise InputError(f"--worst: {store.path} holds no estimates, which SAM makes; name its masks with "
                             "--pseudo_label sam, or leave it out")
        self.stems = sorted(stems, key=means.get)[:worst]
        if absent := [stem for stem in self.stems if not data.image_path(stem).is_file()]:
            raise InputError(f"{data.image_path(absent[0])}: no such image, but {store.path} has its mask; put it "
                             "there")

    def estimates(self, stem: str) -> np.ndarray:
        """Float, (C,), NaN where there is none."""
        estimates = self._store.estimated_dice(stem)
        return np.full(len(self._data.description.labels), np.nan) if estimates is None else estimates

    def write(self, folder: Path, options: ExportOptions) -> Path:
        """Returns the file of annotations."""
        names = self._data.description.labels
        path = folder / ("annotations.json" if options.format == "coco" else "annotations.xml")
        if options.format == "coco":
            write_coco(path, self.images(), names)
        else:
            labels = self.cvat_labels(options.cvat_label)
            write_cvat(path, self.images(), labels, options.tolerance if options.shapes == "polygon" else None)
            with atomic_path(folder / "labels.json") as temporary:
                temporary.write_text(json.dumps(labels.describe(), indent=1, ensure_ascii=False), encoding="utf-8")
        write_estimates(folder / "estimates.csv", {self.name(stem): self.estimates(stem) for stem in self.stems}, names)
        if options.with_images:
            for stem in self.stems:
                self.copy_image(stem, folder / "images" / self.name(stem))
        return path

    def images(self) -> Iterator[ExportedImage]:
        """As they were before the data set mirrored some, at their own size."""
        for stem in self.stems:
            masks = resize_masks_smoothly(self._store.mask(stem), image_size(self._data.image_path(stem)))
            masks = np.ascontiguousarray(masks[..., ::-1]) if self._data.is_mirrored(stem) else masks
            yield ExportedImage(self.name(stem), masks, self.estimates(stem))

    @cached_property
    def _image_folder(self) -> Path:
        return self._data.description.locate(self._data.folder, self._data.description.image_folder)

    def name(self, stem: str) -> str:
        """Of the image's file, with its folders."""
        return self._data.image_path(stem).relative_to(self._image_folder).as_posix()

    def cvat_labels(self, given: str | None) -> CvatLabels:
        """As the data set's own annotations call them, if they are of CVAT."""
        description, masks = self._data.description, self._data.description.masks
        attribute = masks.attribute if isinstance(masks, CvatMasks) else None
        if attribute is None:
            return CvatLabels(description.labels)
        file = (*masks.train, *masks.files)[0]
        path = ROOT / file.file if file.in_project else description.locate(self._data.folder, file.file)
        return CvatLabels(description.labels, given or find_label(path, attribute), attribute)

    def copy_image(self, stem: str, path: Path) -> None:
        source = self._data.image_path(stem)
        if self._data.is_mirrored(stem):
            write_png(path, cv2.imread(str(source), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)[:, ::-1])
        else:
            with atomic_path(path) as temporary:
                shutil.copyfile(source, temporary)


def mean_of(estimates: np.ndarray) -> float:
    """NaN where all are."""
    known = estimates[~np.isnan(estimates)]
    return float(known.mean()) if len(known) else float("nan")


def write_estimates(path: Path, estimates: dict[str, np.ndarray], labels: Sequence[str]) -> None:
    """A row an image: name, mean, each class, in percent; empty where there is none."""
    rows = [["image", "mean", *labels]]
    for name, values in estimates.items():
        rows.append([name, *("" if np.isnan(value) else f"{100 * value:.2f}" for value in (mean_of(values), *values))])
    write_rows(path, rows)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
