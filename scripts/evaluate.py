"""Measures a model, or the pseudo labels made from it, against the true masks (paper, section 3).

    python -m scripts.evaluate --model_id ID
    python -m scripts.evaluate --model_id ID --split val --pseudo_label sam
    python -m scripts.evaluate --dataset phantom --model_id ID --split unlabelled --pseudo_label sam

Saved masks are measured where there are some, else they are predicted and refined on the spot (and nnU-Net is
trained, if it isn't). Unlabelled images can be measured where their truth is known, as that of the sample data is.

Reads   a model by its id, a labelled split, with `--pseudo_label sam` SAM's weights and embeddings
Writes  results/<dataset>/<model id>/<split>_<kind>/: dice.csv (a row an image: mean and each class, in percent; empty
        where the truth doesn't show the class), overlays of the best, the median and the worst image
"""
import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from scripts.arguments import (
    add_common_arguments,
    add_model_arguments,
    add_prediction_arguments,
    add_pseudo_label_argument,
    add_sam_arguments,
    load_model_and_data,
    print_sam_notice,
    pseudo_label_kind,
    task_parameters,
    unlabelled_stems,
)
from scripts.csv_tables import write_rows
from scripts.save_random_walk_segmentations import walk_images
from scripts.save_refined_segmentations import refine_images
from scripts.segmentation_dataset import AnnotatedImages, ImageDataset
from scripts.train_nnunet import nnunet_of
from unet_training.prediction import predict
from unet_training.u_net import UNet
from utils.cli import InputError, run_stage, select_device, stage_parser
from utils.dice import image_dice, multilabel_dice
from utils.experiment import fetch_model, start
from utils.files import read_grey, write_png
from utils.mask_store import MaskStore
from utils.overlay import overlay, side_by_side, to_grey
from utils.paths import RESULTS, mask_file
from utils.refinement import add_refinement_arguments


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
    parser.add_argument("--split", choices=("train", "val", "test", "unlabelled"), default="test", help="which images")
    add_pseudo_label_argument(parser, default="raw")
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of the results")
    add_sam_arguments(parser)
    add_refinement_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Summary:
    """Returns the mean Dice and its deviation over the images."""
    device = select_device(args.gpu_id)
    model, u_net, _, data = load_model_and_data(args, device, stage=None)
    stems = data.stems(args.split) if args.split != "unlabelled" else unlabelled_stems(args, model, data)
    without_truth = [stem for stem in stems if not data.has_truth(stem)]
    if without_truth:
        raise InputError(f"data set {args.dataset}: the true masks of the {args.split} images are not known "
                         f"({without_truth[0]}, ...); name another --split")
    kind = pseudo_label_kind(args, data)
    folder = args.results_dir / args.dataset / model.id / f"{args.split}_{kind}"
    with start("evaluate", task_parameters(args, "evaluate", masks=kind), ("evaluate", args.dataset)) as experiment:
        experiment.use_model(model.id)
        dice = {stem: multilabel_dice(torch.from_numpy(mask), torch.from_numpy(data.mask(stem)))
                for stem, mask in masks_of(args, model.id, u_net, data, stems, device)}
        write_csv(folder / "dice.csv", dice, data.description.labels)
        counted = [stem for stem in stems if stem not in data.description.left_out_of_averages]
        summary = summarise([dice[stem] for stem in counted])
        experiment.scalar("dice", f"{args.split} {kind}", summary.mean, 0)
        for name, picture in overlays(args, model.id, u_net, data, dice, device):
            write_png(folder / f"{name}.png", picture)
            experiment.image("overlay", name, picture, 0)
    left_out = [stem for stem in stems if stem not in counted]
    print(f"{args.split}, {kind}: Dice {summary}" + (f", without {', '.join(left_out)}" if left_out else ""))
    print(f"per image and class, and overlays: {folder}")
    if args.pseudo_label == "sam":
        print_sam_notice(args, data)
    return summary


def masks_of(args: argparse.Namespace, model_id: str, u_net: UNet, data: AnnotatedImages, stems: list[str],
             device: torch.device) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (stem, bool (C, H, W)): the saved masks if they are all there, else computed now."""
    kind = pseudo_label_kind(args, data)
    path = mask_file(args.data_dir, model_id, kind)
    saved = MaskStore(path, data.description.labels) if path.exists() else ()
    if all(stem in saved for stem in stems):
        yield from ((stem, saved.mask(stem)) for stem in stems)
    elif args.pseudo_label == "raw":
        for stem, probabilities in predict(u_net, ImageDataset(data, stems), device, args.infer_batch_size):
            yield stem, probabilities > 0.5
    elif args.pseudo_label == "random_walk":
        yield from walk_images(args, u_net, data, stems, device)
    elif args.pseudo_label == "nnunet":
        yield from nnunet_of(args, fetch_model(model_id), data, device).predict(stems)
    else:
        yield from ((stem, refined.mask) for stem, refined in refine_images(args, u_net, data, stems, device))


def summarise(dice: list[torch.Tensor]) -> Summary:
    """Of the Dice per image and class, each (C,) in [0, 1]."""
    percent = 100 * image_dice(torch.stack(dice)).double()
    percent = percent[~percent.isnan()]
    return Summary(percent.mean().item(), percent.std().item() if len(percent) > 1 else float("nan"), len(percent))


def write_csv(path: Path, dice: dict[str, torch.Tensor], labels: tuple[str, ...]) -> None:
    """A row an image: stem, mean, each class, in percent; empty where the truth doesn't show the class."""
    rows = [["stem", "mean", *labels]]
    for stem, values in dice.items():
        cells = [image_dice(values).item(), *values.tolist()]
        rows.append([stem, *("" if np.isnan(cell) else f"{100 * cell:.4f}" for cell in cells)])
    write_rows(path, rows)


def overlays(args: argparse.Namespace, model_id: str, u_net: UNet, data: AnnotatedImages, dice: dict[str, torch.Tensor],
             device: torch.device) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, picture) of the best, the median and the worst image: radiograph, truth, measured masks."""
    ranked = sorted(dice, key=lambda stem: -image_dice(dice[stem]).nan_to_num(-1).item())
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    masks = dict(masks_of(args, model_id, u_net, data, sorted(set(chosen.values())), device))
    for name, stem in chosen.items():
        grey = to_grey(read_grey(data.image_path(stem)))
        panels = [overlay(grey, m) for m in (np.zeros_like(masks[stem]), data.mask(stem), masks[stem])]
        title = f"{args.pseudo_label}, Dice {100 * image_dice(dice[stem]):.1f} %"
        yield f"{name}_{stem}", side_by_side(panels, [stem[:24], "truth", title])


if __name__ == "__main__":
    run_stage(main, get_args_parser())
