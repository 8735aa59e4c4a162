"""Draws what becomes of one image: the network's masks, the refined ones, and the prompts that SAM was given.

    python -m scripts.plot_prediction --model_id ID --stem STEM
    python -m scripts.plot_prediction --dataset phantom --model_id ID --stem STEM --pseudo_label raw

Reads   a model by its id, the image, with `--pseudo_label sam` SAM's weights
Writes  results/<dataset>/<model id>/prediction_<stem>.png and .pdf (radiograph, ground truth where it is known, masks,
        with a legend); for SAM also prompts_<stem>.png and .pdf: of each class the network's mask, the cleaned one with
        box and points, and SAM's with its estimate
"""
import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scripts.study.figures import save_figure
from scripts.study.pictures import overlays, panels, prompts_figure
from segment_anything.refinement.refine import clean_and_prompt
from unet_training.models import TrainedModel, add_saving_arguments
from unet_training.pseudo_labels import (
    PSEUDO_LABELS,
    Mask,
    SamRefined,
    add_pseudo_label_argument,
    add_pseudo_label_options,
)
from utils.cli import run_stage, stage_parser
from utils.overlay import to_grey
from utils.paths import RESULTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.plot_prediction", __doc__)
    add_saving_arguments(parser)
    parser.add_argument("--stem", required=True, help="name of the image's file without its suffix")
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of the results")
    add_pseudo_label_argument(parser, default="sam")
    add_pseudo_label_options(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the folder of the pictures."""
    model = TrainedModel.from_args(args, stage=None)
    labels = PSEUDO_LABELS[args.pseudo_label].from_args(args, model.data)
    labels.check()
    data, stem = model.data, args.stem
    grey = to_grey(data.read_grey(stem))
    (_, probabilities), = model.probabilities([stem])
    refined, = labels.compute(model, [stem])
    masks = {"ground truth": data.mask(stem)} if data.has_ground_truth(stem) else {}
    masks |= {model.network.architecture: probabilities > 0.5, labels.title: refined.mask}
    folder = args.results_dir / data.description.name / model.id
    title = f"{stem}\n{labels.notice}".strip()
    save_figure(folder / f"prediction_{stem}", overlays({"": panels(grey, masks)}, data.description.labels, title, 3))
    if isinstance(labels, SamRefined):
        save_figure(folder / f"prompts_{stem}", draw_prompts(labels, model, grey, probabilities, refined, title))
    print(f"pictures: {folder}")
    return folder


def draw_prompts(labels: SamRefined, model: TrainedModel, grey: np.ndarray, probabilities: np.ndarray, refined: Mask,
                 title: str) -> "Figure":
    """The prompts of every class of one image, grey uint8 (H, W), probabilities float32 (C, h, w)."""
    cleaned, prompts = clean_and_prompt(probabilities, labels.options)
    sets = labels.options.prompt1st, labels.options.prompt2nd
    return prompts_figure(grey, probabilities, cleaned, prompts, sets, refined.mask, refined.estimated_dice,
                          model.data.description.labels, title)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
