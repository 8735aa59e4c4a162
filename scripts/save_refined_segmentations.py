"""Refines the U-Net's masks of the unlabeled images with SAM: the refined pseudo labels.

    python -m scripts.save_refined_segmentations
    python -m scripts.save_refined_segmentations --dataset phantom --num_train_samples 5
    python -m scripts.save_refined_segmentations --sam_type medsam --prompt1st box --prompt2nd

From each class of the U-Net's segmentation come prompts (box, points), from which SAM draws a better mask. Embeddings
that are missing are computed first. A rerun only refines what is missing; other options go to another file.

Reads   a model by its id, images of the data set, data/<dataset>/sam_embeddings/<sam type>/, SAM's weights
Writes  data/seg_masks/<model id>/sam_<prompts and options>_<sam type>.h5 with SAM's estimate of each mask's Dice
"""
import argparse
from pathlib import Path

from unet_training.models import Selection, TrainedModel, add_saving_arguments
from unet_training.pseudo_labels import SamRefined
from unet_training.saved_masks import save_masks
from utils.cli import run_stage, stage_parser
from utils.options import options_from
from utils.ranks import Shard, add_shard_argument


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.save_refined_segmentations", __doc__)
    add_saving_arguments(parser)
    add_shard_argument(parser)
    SamRefined.add_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file of refined masks."""
    model = TrainedModel.from_args(args)
    labels, selection = SamRefined.from_args(args, model.data), options_from(Selection, args)
    return save_masks(labels, model, selection, Shard.choose(args.shard))


if __name__ == "__main__":
    run_stage(main, get_args_parser(), shared=True)
