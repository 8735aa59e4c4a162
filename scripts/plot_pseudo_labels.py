"""Draws saved pseudo labels: a random one of each class, and what SAM thinks of all of them.

    python -m scripts.plot_pseudo_labels --model_id ID
    python -m scripts.plot_pseudo_labels --model_id ID --pseudo_label raw --seed 7

Reads   the masks that a saving stage wrote for the model, and their images; the agreement of scripts.add_sam_agreement
        where it is there
Writes  results/<dataset>/<model id>/<variant of the masks>/: pseudo_labels (one of each class with SAM's estimate),
        estimate_histogram and agreement_curve, each as PNG and PDF
"""
import argparse
from pathlib import Path

import numpy as np

from scripts.study.figures import agreement_curve, draw, estimate_histogram, save_figure
from scripts.study.pictures import pseudo_label_grid, sample_pseudo_labels
from unet_training.hyper_params import RELIABLE
from unet_training.models import TrainedModel, add_saving_arguments
from unet_training.pseudo_labels import PSEUDO_LABELS, Agreement, add_pseudo_label_argument, add_pseudo_label_options
from unet_training.saved_masks import masks_path, mean_estimates, open_saved_masks
from utils.cli import run_stage, stage_parser
from utils.overlay import to_grey
from utils.paths import RESULTS


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.plot_pseudo_labels", __doc__)
    add_saving_arguments(parser)
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of the results")
    add_pseudo_label_argument(parser, default="sam")
    add_pseudo_label_options(parser)
    Agreement.add_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the folder of the pictures."""
    model = TrainedModel.from_args(args)
    data, names = model.data, model.data.description.labels
    labels, agreement = (made.from_args(args, data) for made in (PSEUDO_LABELS[args.pseudo_label], Agreement))
    store = open_saved_masks(labels, model)
    folder = args.results_dir / data.description.name / model.id / labels.variant
    title = f"{labels.title}\n{labels.notice}".strip()
    pictures = {}
    for label, stem in sample_pseudo_labels(store, names, args.seed).items():
        channel, estimates = names.index(label), store.estimated_dice(stem)
        pictures[label] = (stem, to_grey(data.read_grey(stem)), store.mask(stem)[channel],
                           None if estimates is None else estimates[channel])
    save_figure(folder / "pseudo_labels", pseudo_label_grid(pictures, title))
    if labels.kind == "sam":
        estimates = 100 * np.concatenate([store.estimated_dice(stem) for stem in store.stems])
        save_figure(folder / "estimate_histogram", draw(title, estimate_histogram, {labels.title: estimates}))
    if masks_path(agreement, model).is_file():
        agreed = open_saved_masks(agreement, model)
        agreements = mean_estimates(agreed, agreed.stems)
        save_figure(folder / "agreement_curve", draw(title, agreement_curve, agreements, RELIABLE))
    print(f"pictures: {folder}")
    return folder


if __name__ == "__main__":
    run_stage(main, get_args_parser())
