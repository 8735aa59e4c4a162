"""Refines the U-Net's masks of the unlabeled images by a random walk on the image, without SAM.

    python -m scripts.save_random_walk_segmentations
    python -m scripts.save_random_walk_segmentations --dataset phantom --num_train_samples 5 --random_walk active

With the released code's settings no pixel is left for the walk to decide, and only the mask cleaning acts. With
`active` the background is eroded, and the walk decides the ring between it and the masks. A rerun only refines what is
missing.

Reads   a model by its id, images of the data set
Writes  data/seg_masks/<model id>/random_walk_<settings>_<ccl selection>.h5
"""
import argparse
from pathlib import Path

from unet_training.models import Selection, TrainedModel, add_saving_arguments
from unet_training.pseudo_labels import RandomWalk
from unet_training.saved_masks import save_masks
from utils.cli import run_stage, stage_parser
from utils.options import options_from
from utils.ranks import Shard, add_shard_argument


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.save_random_walk_segmentations", __doc__)
    add_saving_arguments(parser)
    add_shard_argument(parser)
    RandomWalk.add_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file of refined masks."""
    model = TrainedModel.from_args(args)
    labels, selection = RandomWalk.from_args(args, model.data), options_from(Selection, args)
    return save_masks(labels, model, selection, Shard.choose(args.shard))


if __name__ == "__main__":
    run_stage(main, get_args_parser(), shared=True)
