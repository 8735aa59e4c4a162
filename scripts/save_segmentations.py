"""Segments the unlabeled images with the initial U-Net: the raw pseudo labels.

    python -m scripts.save_segmentations
    python -m scripts.save_segmentations --dataset phantom --num_train_samples 5

A rerun only predicts what is missing.

Reads   a model by its id, the unlabeled images of the data set
Writes  data/seg_masks/<model id>/raw.h5 (layout: utils/mask_store.py)
"""
import argparse
from pathlib import Path

from unet_training.models import Selection, TrainedModel, add_saving_arguments
from unet_training.pseudo_labels import Raw
from unet_training.saved_masks import save_masks
from utils.cli import run_stage, stage_parser
from utils.options import options_from
from utils.ranks import Shard, add_shard_argument


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.save_segmentations", __doc__)
    add_saving_arguments(parser)
    add_shard_argument(parser)
    Raw.add_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file of raw masks."""
    model = TrainedModel.from_args(args)
    labels, selection = Raw.from_args(args, model.data), options_from(Selection, args)
    return save_masks(labels, model, selection, Shard.choose(args.shard))


if __name__ == "__main__":
    run_stage(main, get_args_parser(), shared=True)
