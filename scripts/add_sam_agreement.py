"""Asks SAM how far it agrees with the U-Net's masks of the unlabeled images.

    python -m scripts.add_sam_agreement
    python -m scripts.add_sam_agreement --dataset phantom --num_train_samples 5

unet_training.training_with_mean_teacher takes the masks with which SAM agrees as labels. A rerun only adds what is
missing.

Reads   a model by its id, images of the data set, data/<dataset>/sam_embeddings/<sam type>/, SAM's weights
Writes  data/seg_masks/<model id>/agreement_<sam type>.h5: the U-Net's masks, with SAM's agreement (Dice) on each class
        as their estimated Dice
"""
import argparse
from pathlib import Path

from unet_training.models import Selection, TrainedModel, add_saving_arguments
from unet_training.pseudo_labels import Agreement
from unet_training.saved_masks import save_masks
from utils.cli import run_stage, stage_parser
from utils.options import options_from


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.add_sam_agreement", __doc__)
    add_saving_arguments(parser)
    Agreement.add_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file of masks."""
    model = TrainedModel.from_args(args)
    return save_masks(Agreement.from_args(args, model.data), model, options_from(Selection, args))


if __name__ == "__main__":
    run_stage(main, get_args_parser())
