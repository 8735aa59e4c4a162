"""Measures a model, or the pseudo labels made from it, against the ground truth (paper, section 3).

    python -m scripts.evaluate --model_id ID
    python -m scripts.evaluate --model_id ID --split val --pseudo_label sam
    python -m scripts.evaluate --dataset phantom --model_id ID --split unlabeled --pseudo_label sam

Saved masks are measured where there are some, else they are predicted and refined on the spot (and nnU-Net is
trained, if it isn't). Unlabeled images can be measured where their ground truth is known, as it is for phantoms.

Reads   a model by its id, a labeled split, with `--pseudo_label sam` SAM's weights and embeddings
Writes  results/<dataset>/<model id>/<split>_<kind>/: dice.csv (a row an image: mean and each class, in percent; empty
        where the ground truth doesn't show the class), estimated_dice.csv for masks of SAM (what it thinks of each),
        with `--surface_tolerance T` surface_dice_<T>px.csv, overlays of the best, the median and the worst image
"""
import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from scripts.save_random_walk_segmentations import walk_images
from scripts.save_refined_segmentations import refine_images
from scripts.train_nnunet import find_nnunet
from segment_anything.refinement.refine import add_refinement_arguments
from unet_training.arguments import (
    add_common_arguments,
    add_model_arguments,
    add_prediction_arguments,
    add_pseudo_label_argument,
    add_sam_arguments,
    load_model_and_data,
    made_of,
    print_model_notice,
    print_sam_notice,
    pseudo_label_kind,
    task_parameters,
    unlabeled_stems,
)
from unet_training.checkpoint import Network
from unet_training.data import ImageDataset
from unet_training.nnunet.nnunet import unpack
from unet_training.prediction import predict
from utils.cli import run_stage, select_device, stage_parser
from utils.csv_tables import write_rows
from utils.datasets.annotated import AnnotatedImages
from utils.dice import image_dice, multilabel_dice, surface_dice
from utils.errors import InputError
from utils.files import read_grey, write_png
from utils.mask_store import MaskStore
from utils.options import positive_float
from utils.overlay import overlay, side_by_side, to_grey
from utils.paths import RESULTS, mask_file
from utils.tracking.experiment import start
from utils.tracking.models import fetch_model


@dataclass(frozen=True)
class Summary:
    """Dice in percent over images: mean, sample standard deviation (NaN for one image), number of images."""

    mean: float
    std: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.std:.2f} % ({self.count} images)"


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.evaluate", __doc__)
    add_common_arguments(parser)
    add_model_arguments(parser)
    add_prediction_arguments(parser)
    parser.add_argument("--split", choices=("train", "val", "test", "unlabeled"), default="test", help="which images")
    add_pseudo_label_argument(parser, default="raw")
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--surface_tolerance", type=positive_float, metavar="PIXELS",
                        help="also measure the surface Dice: the share of the outlines that is no further off")
    add_sam_arguments(parser)
    add_refinement_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Summary:
    """Returns the mean Dice and its deviation over the images."""
    device = select_device(args.gpu_id)
    model, u_net, _, data = load_model_and_data(args, device, stage=None)
    stems = data.stems(args.split) if args.split != "unlabeled" else unlabeled_stems(args, model, data)
    without_ground_truth = [stem for stem in stems if not data.has_ground_truth(stem)]
    if without_ground_truth:
        raise InputError(f"data set {args.dataset}: the ground truth of the {args.split} images are not known "
                         f"({without_ground_truth[0]}, ...); name another --split")
    kind, tables = pseudo_label_kind(args, data), result_tables(args, model.id, data)
    folder = tables["dice"].parent
    with start("evaluate", task_parameters(args, "evaluate", masks=kind), ("evaluate", args.dataset)) as experiment:
        experiment.use_model(model.id)
        measured = measure(tables, masks_of(args, model.id, u_net, data, stems, device), data, args.surface_tolerance)
        counted = [stem for stem in stems if stem not in data.description.left_out_of_averages]
        for name, path in tables.items():
            write_csv(path, measured[name], data.description.labels)
        summaries = {name: summarize([values[stem] for stem in counted]) for name, values in measured.items()}
        for name, summary in summaries.items():
            experiment.scalar(name, f"{args.split} {kind}", summary.mean, 0)
        for name, picture in overlays(args, model.id, u_net, data, measured["dice"], device):
            write_png(folder / f"{name}.png", picture)
            experiment.image("overlay", name, picture, 0)
    left_out = [stem for stem in stems if stem not in counted]
    without = f", without {', '.join(left_out)}" if left_out else ""
    for name, summary in summaries.items():
        print(f"{args.split}, {kind}: {name.replace('_', ' ').replace('dice', 'Dice')} {summary}{without}")
    print(f"per image and class, and overlays: {folder}")
    if args.pseudo_label == "sam":
        print_sam_notice(args, data)
    print_model_notice(u_net)
    return summaries["dice"]


def result_tables(args: argparse.Namespace, model_id: str, data: AnnotatedImages) -> dict[str, Path]:
    """What is measured -> the file of its table."""
    folder = args.results_dir / args.dataset / model_id / f"{args.split}_{pseudo_label_kind(args, data)}"
    tables = {"dice": folder / "dice.csv"}
    if args.surface_tolerance:
        tables["surface_dice"] = folder / f"surface_dice_{args.surface_tolerance:g}px.csv"
    if args.pseudo_label == "sam":
        tables["estimated_dice"] = folder / "estimated_dice.csv"
    return tables


def measure(names: Iterable[str], masks: Iterable[tuple[str, np.ndarray, np.ndarray | None]], data: AnnotatedImages,
            tolerance: float | None) -> dict[str, dict[str, torch.Tensor]]:
    """What is measured -> stem -> values (C,) in [0, 1], of `masks` as `masks_of` yields them."""
    measured = {name: {} for name in names}
    for stem, mask, estimate in masks:
        ground_truth = data.mask(stem)
        measured["dice"][stem] = multilabel_dice(torch.from_numpy(mask), torch.from_numpy(ground_truth))
        if "surface_dice" in measured:
            measured["surface_dice"][stem] = torch.from_numpy(surface_dice(mask, ground_truth, tolerance))
        if "estimated_dice" in measured:
            measured["estimated_dice"][stem] = torch.from_numpy(estimate)
    return measured


def masks_of(args: argparse.Namespace, model_id: str, u_net: Network, data: AnnotatedImages, stems: list[str],
             device: torch.device) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """Yields (stem, bool (C, H, W), SAM's estimated Dice (C,) if it is SAM's mask): the saved masks if they are all
    there and of this data set and SAM, else computed now."""
    kind = pseudo_label_kind(args, data)
    path = mask_file(args.data_dir, model_id, kind)
    saved = MaskStore(path, data.description.labels) if path.exists() else None
    if saved and all(stem in saved for stem in stems) and not made_of(saved, args, data):
        yield from ((stem, saved.mask(stem), saved.estimated_dice(stem)) for stem in stems)
    elif args.pseudo_label == "raw":
        for stem, probabilities in predict(u_net, ImageDataset(data, stems), device, args.infer_batch_size):
            yield stem, probabilities > 0.5, None
    elif args.pseudo_label == "random_walk":
        yield from ((stem, mask, None) for stem, mask in walk_images(args, u_net, data, stems, device))
    elif args.pseudo_label == "nnunet":
        with unpack(find_nnunet(args, fetch_model(model_id), data).weights, data, device) as nnunet:
            yield from ((stem, mask, None) for stem, mask in nnunet.predict(stems))
    else:
        yield from ((stem, refined.mask, refined.estimated_dice)
                    for stem, refined in refine_images(args, u_net, data, stems, device))


def summarize(dice: list[torch.Tensor]) -> Summary:
    """Of the Dice per image and class, each (C,) in [0, 1]."""
    percent = 100 * image_dice(torch.stack(dice)).double()
    percent = percent[~percent.isnan()]
    return Summary(percent.mean().item(), percent.std().item() if len(percent) > 1 else float("nan"), len(percent))


def write_csv(path: Path, dice: dict[str, torch.Tensor], labels: tuple[str, ...]) -> None:
    """A row an image: stem, mean, each class, in percent; empty where there is no value (NaN)."""
    rows = [["stem", "mean", *labels]]
    for stem, values in dice.items():
        cells = [image_dice(values).item(), *values.tolist()]
        rows.append([stem, *("" if np.isnan(cell) else f"{100 * cell:.4f}" for cell in cells)])
    write_rows(path, rows)


def overlays(args: argparse.Namespace, model_id: str, u_net: Network, data: AnnotatedImages,
             dice: dict[str, torch.Tensor], device: torch.device) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, picture) of the best, the median and the worst image: radiograph, ground truth, measured masks."""
    ranked = sorted(dice, key=lambda stem: -image_dice(dice[stem]).nan_to_num(-1).item())
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    masks = {stem: mask for stem, mask, _ in
             masks_of(args, model_id, u_net, data, sorted(set(chosen.values())), device)}
    for name, stem in chosen.items():
        grey = to_grey(read_grey(data.image_path(stem)))
        panels = [overlay(grey, m) for m in (np.zeros_like(masks[stem]), data.mask(stem), masks[stem])]
        title = f"{args.pseudo_label}, Dice {100 * image_dice(dice[stem]):.1f} %"
        yield f"{name}_{stem}", side_by_side(panels, [stem[:24], "ground truth", title])


if __name__ == "__main__":
    run_stage(main, get_args_parser())
