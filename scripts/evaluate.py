"""Measures a model, or the pseudo labels made from it, against the ground truth.

    python -m scripts.evaluate --model_id ID
    python -m scripts.evaluate --model_id ID --split val --pseudo_label sam
    python -m scripts.evaluate --dataset phantom --model_id ID --split unlabeled --pseudo_label sam

Saved masks are measured where there are some, else they are predicted and refined on the spot. Unlabeled images can be
measured where their ground truth is known, as it is for phantoms.

Reads   a model by its id, a labeled split, with `--pseudo_label sam` SAM's weights and embeddings
Writes  results/<dataset>/<model id>/<split>_<kind>/: dice.csv (a row an image: mean and each class, in percent; empty
        where the ground truth doesn't show the class; how many masks are of such classes, which Dice ignores),
        labels.csv (a row a class: images that show it, those of them with a mask, masks where it isn't, mean Dice),
        estimated_dice.csv for masks of SAM (what it thinks of each),
        with `--surface_tolerance T` surface_dice_<T>px.csv, overlays of the best, the median and the worst image
"""
import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from unet_training.models import Selection, TrainedModel, add_batch_argument, add_model_arguments
from unet_training.pseudo_labels import PSEUDO_LABELS, PseudoLabels, add_pseudo_label_argument, add_pseudo_label_options
from unet_training.saved_masks import masks_of
from unet_training.training_stage import Images
from utils.cli import run_stage, stage_parser
from utils.dice import image_dice, multilabel_dice, surface_dice
from utils.digests import digest_file
from utils.errors import InputError
from utils.files import write_png
from utils.locks import check_writable
from utils.options import option_values, options_from, positive_float
from utils.overlay import add_class_legend, overlay, shrink_to_panel, side_by_side, to_grey
from utils.paths import RESULTS
from utils.provenance import describe_run
from utils.records import find_record, write_record
from utils.tables import best_median_worst, read_rows, write_rows
from utils.tracking.experiment import start
from utils.tracking.models import name_result

SPLITS = ("train", "val", "test", "unlabeled")
Values = Mapping[str, torch.Tensor]  # stem -> (C,) in [0, 1], NaN where there is none


@dataclass(frozen=True)
class Summary:
    """Dice in percent over images: mean, sample standard deviation (NaN for one image), number of images; and how many
    masks are of labels that the ground truth of their image doesn't show."""

    mean: float
    std: float
    count: int
    false_positives: int = 0

    def __str__(self) -> str:
        spread = f" ± {self.std:.2f}" if self.count > 1 else ""
        return f"{self.mean:.2f}{spread} % ({self.count} images)"


class OfLabel(NamedTuple):
    """What was measured of one label.

    Attributes:
        shown: images whose ground truth shows it
        found: those of them with a mask of it
        false_positives: images with a mask of it whose ground truth doesn't show it
        dice: mean over the images that show it, in percent; NaN if none does
    """

    label: str
    shown: int
    found: int
    false_positives: int
    dice: float


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.evaluate", __doc__)
    add_model_arguments(parser)
    add_batch_argument(parser)
    parser.add_argument("--split", choices=SPLITS, default="test", help="which images")
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--surface_tolerance", type=positive_float, metavar="PIXELS",
                        help="also measure the surface Dice: the share of the outlines that is no further off")
    add_pseudo_label_argument(parser, default="raw")
    add_pseudo_label_options(parser)
    return parser


def main(args: argparse.Namespace) -> Summary:
    """Returns the mean Dice and its deviation over the images."""
    check_writable(args.results_dir)
    model = TrainedModel.from_args(args, stage=None)
    labels = PSEUDO_LABELS[args.pseudo_label].from_args(args, model.data)
    return Evaluation(model, labels, args.split, options_from(Selection, args), args.results_dir,
                      args.surface_tolerance).run()


@dataclass(frozen=True)
class Evaluation:
    """What is measured: the masks of this kind that come of a model, on a split.

    `surface_tolerance` is in pixels; None: no surface Dice.
    """

    model: TrainedModel
    labels: PseudoLabels
    split: str
    selection: Selection
    results_dir: Path
    surface_tolerance: float | None = None

    @cached_property
    def stems(self) -> list[str]:
        """Raises an InputError where the ground truth of an image isn't known."""
        data = self.model.data
        stems = (data.stems(self.split) if self.split != "unlabeled" else self.model.unlabeled_stems(self.selection))
        if unknown := [stem for stem in stems if not data.has_ground_truth(stem)]:
            raise InputError(f"data set {data.description.name}: the ground truth of the {self.split} images is not "
                             f"known ({unknown[0]}, ...); name another --split")
        return stems

    @property
    def folder(self) -> Path:
        """Of the results."""
        return (self.results_dir / self.model.data.description.name / self.model.id
                / f"{self.split}_{self.labels.variant}")

    @property
    def tables(self) -> dict[str, Path]:
        """What is measured -> the file of its table."""
        tables = {"dice": self.folder / "dice.csv"}
        if self.surface_tolerance:
            tables["surface_dice"] = self.folder / f"surface_dice_{self.surface_tolerance:g}px.csv"
        if self.labels.kind == "sam":
            tables["estimated_dice"] = self.folder / "estimated_dice.csv"
        return tables

    @property
    def _files(self) -> dict[str, Path]:
        return {**self.tables, "labels": self.folder / "labels.csv"}

    def run(self) -> Summary:
        """Measures, writes tables and overlays, and prints the means; returns that of the Dice."""
        variant, data = self.labels.variant, self.model.data
        parameters = {"stage": "evaluate", "dataset": data.description.name, "model_id": self.model.id,
                      "split": self.split, "masks": variant, "surface_tolerance": self.surface_tolerance,
                      **option_values(self.selection), **self.labels.parameters}
        chosen = {**self.labels.arguments(data), "num_train_samples": self.model.num_labeled,
                  "results_dir": self.results_dir}
        with start(self.title, parameters, ("evaluate", data.description.name), kind="testing",
                   module="scripts.evaluate", chosen=chosen) as experiment:
            experiment.use_model(self.model.id)
            measured, found = self.measure()
            false = {stem: int(np.sum(masks & measured["dice"][stem].isnan().numpy())) for stem, masks in found.items()}
            summaries = {name: self.summarize(values) for name, values in measured.items()}
            summaries["dice"] = replace(summaries["dice"], false_positives=sum(false.values()))
            for name, path in self.tables.items():
                rows = list_rows(measured[name], data.description.labels,
                                 {"false_positives": false} if name == "dice" else {})
                write_rows(path, rows)
                title = f"{name.replace('_', ' ').capitalize()} in %"
                experiment.scalar(title, self.split, summaries[name].mean, 0)
                experiment.single_value(f"{title}, {self.split}", summaries[name].mean)
                experiment.single_value(f"{title}, {self.split}, std", summaries[name].std)
                experiment.single_value(f"images, {self.split}", summaries[name].count)
                experiment.artifact(path.stem, path)
                experiment.table(f"{title}, {self.split}", rows)
            write_rows(self._files["labels"], [OfLabel._fields, *self.summarize_labels(measured["dice"], found)])
            for name, picture in self.overlays(measured["dice"]):
                write_png(self.folder / f"{name}.png", picture)
                experiment.image("overlay", name, picture, 0)
            write_record(self._record, {"measured": self._fingerprint, "dice": asdict(summaries["dice"]),
                                        "tables": self._digest_tables(), "run": describe_run()})
            self._print(summaries)
        return summaries["dice"]

    @property
    def title(self) -> str:
        """In the tracker."""
        masks = "" if self.labels.kind == "raw" else f", masks {self.labels.kind}"
        return f"evaluate {self.split}, {name_result(self.model.record.parameters)}{masks}"

    def run_if_missing(self) -> Summary:
        """The mean Dice as it was measured before, or else now."""
        if not self.is_done():
            return self.run()
        print(f"already measured: {self.folder}")
        return Summary(**self._read()["dice"])

    def of_labels(self) -> list[OfLabel]:
        """What was measured of each label."""
        return [OfLabel(row["label"], *(int(row[name]) for name in OfLabel._fields[1:4]), float(row["dice"]))
                for row in read_rows(self._files["labels"], OfLabel._fields)]

    def is_done(self) -> bool:
        """Whether it was measured on these images, ground truth and masks, and the tables are as they were written."""
        known = self._read()
        return (all(path.is_file() for path in self._files.values()) and known.get("measured") == self._fingerprint
                and known["tables"] == self._digest_tables())

    def _digest_tables(self) -> dict[str, str]:
        return {name: digest_file(path) for name, path in self._files.items()}

    def _read(self) -> dict[str, Any]:
        """What was measured before; {} if nothing was, or the record of it is damaged."""
        return find_record(self._record, dict[str, Any]) or {}

    @property
    def _record(self) -> Path:
        return self.folder / "evaluation.json"

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """What the result depends on."""
        images = Images(self.model.data, self.stems)
        return {"images": images.origins, "weights_sha256": digest_file(self.model.record.weights),
                **self.labels.attributes(self.model)}

    def measure(self) -> tuple[dict[str, Values], dict[str, np.ndarray]]:
        """Dice, and with it surface Dice and estimates where the tables have them; and of each image, which classes
        have a mask, bool (C,)."""
        measured, found = {name: {} for name in self.tables}, {}
        for stem, mask, estimate in masks_of(self.labels, self.model, self.stems):
            ground_truth = self.model.data.mask(stem)
            found[stem] = mask.any(axis=(1, 2))
            measured["dice"][stem] = multilabel_dice(torch.from_numpy(mask), torch.from_numpy(ground_truth))
            if "surface_dice" in measured:
                distance = surface_dice(mask, ground_truth, self.surface_tolerance)
                measured["surface_dice"][stem] = torch.from_numpy(distance)
            if "estimated_dice" in measured:
                measured["estimated_dice"][stem] = torch.from_numpy(estimate)
        return measured, found

    def summarize_labels(self, dice: Values, found: Mapping[str, np.ndarray]) -> Iterator[OfLabel]:
        """Over all images."""
        values, masks = torch.stack([dice[stem] for stem in self.stems]), np.stack([found[stem] for stem in self.stems])
        shown = ~values.isnan().numpy()
        counts = (count.sum(axis=0).tolist() for count in (shown, masks & shown, masks & ~shown))
        means = (100 * values.double().nanmean(dim=0)).tolist()
        return map(OfLabel, self.model.data.description.labels, *counts, means)

    def summarize(self, values: Values) -> Summary:
        """Over the images that count."""
        left_out = self.model.data.description.left_out_of_averages
        percent = 100 * image_dice(torch.stack([values[stem] for stem in self.stems if stem not in left_out])).double()
        percent = percent[~percent.isnan()]
        return Summary(percent.mean().item(), percent.std().item() if len(percent) > 1 else float("nan"), len(percent))

    def overlays(self, dice: Values) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, picture) of the best, the median and the worst image: radiograph, ground truth, masks."""
        data = self.model.data
        scores = {stem: image_dice(values).nan_to_num(-1).item() for stem, values in dice.items()}
        chosen = best_median_worst(scores)
        masks = {stem: mask for stem, mask, _ in masks_of(self.labels, self.model, sorted(set(chosen.values())))}
        for name, stem in chosen.items():
            grey = shrink_to_panel(to_grey(data.read_grey(stem)))
            panels = [overlay(grey, mask) for mask in ((), data.mask(stem), masks[stem])]
            title = f"{self.labels.kind}, Dice {100 * image_dice(dice[stem]):.1f} %"
            picture = side_by_side(panels, [stem, "ground truth", title])
            yield f"{name}_{stem}", add_class_legend(picture, data.description.labels)

    def _print(self, summaries: Mapping[str, Summary]) -> None:
        left_out = [stem for stem in self.stems if stem in self.model.data.description.left_out_of_averages]
        without = f", without {', '.join(left_out)}" if left_out else ""
        for name, summary in summaries.items():
            print(f"{self.split}, {self.labels.variant}: {name.replace('_', ' ').replace('dice', 'Dice')} "
                  f"{summary}{without}")
        if false := summaries["dice"].false_positives:
            print(f"masks of labels that their image doesn't show, which the Dice doesn't count: {false}")
        print(f"per image and class, and overlays: {self.folder}")
        if self.labels.notice:
            print(f"refined masks: {self.labels.notice}")
        self.model.print_notice()


def list_rows(values: Values, labels: Sequence[str], counts: Mapping[str, Mapping[str, int]]) -> list[list[Any]]:
    """A row an image: stem, mean, each class, in percent; empty where there is no value (NaN); then the counts by their
    names."""
    rows: list[list[Any]] = [["stem", "mean", *labels, *counts]]
    for stem, classes in values.items():
        cells = [image_dice(classes).item(), *classes.tolist()]
        rows.append([stem, *("" if np.isnan(cell) else f"{100 * cell:.4f}" for cell in cells),
                     *(of_images[stem] for of_images in counts.values())])
    return rows


if __name__ == "__main__":
    run_stage(main, get_args_parser())
