"""Segments the unlabeled images with nnU-Net: pseudo labels without U-Net and SAM.

    python -m scripts.save_nnunet_segmentations --gpu_id 0
    python -m scripts.save_nnunet_segmentations --dataset phantom --num_train_samples 5 --nnunet_epochs 10 --nnunet_iterations 25

The newest nnU-Net of the same arguments is taken, or the one that --nnunet_model_id names; if there is none, it is
trained first, as by scripts.train_nnunet. Its masks are filed under the initial U-Net's model id, which says which images
are labeled. A rerun only predicts what is missing.

Reads   two models by their ids, images of the data set
Writes  data/seg_masks/<model id>/nnunet_<encoding>[_<epochs>x<iterations>].h5
"""  # noqa: E501 (a command to copy)
import argparse
from pathlib import Path

from unet_training.models import Selection, TrainedModel, add_saving_arguments
from unet_training.pseudo_labels import NNUNetMasks
from unet_training.saved_masks import save_masks
from utils.cli import run_stage, stage_parser
from utils.options import options_from


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.save_nnunet_segmentations", __doc__)
    add_saving_arguments(parser)
    NNUNetMasks.add_arguments(parser)
    parser.add_argument("--nnunet_model_id", help="the nnU-Net (left out: the newest of the arguments above)")
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file of masks."""
    model = TrainedModel.from_args(args)
    return save_masks(NNUNetMasks.from_args(args, model.data), model, options_from(Selection, args))


if __name__ == "__main__":
    run_stage(main, get_args_parser())
