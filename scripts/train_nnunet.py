"""Trains nnU-Net v2 on the labeled images, by its own commands.

    pip install -r requirements_nnunet.txt
    python -m scripts.train_nnunet --gpu_id 0
    python -m scripts.train_nnunet --dataset phantom --num_train_samples 5 --nnunet_epochs 10 --nnunet_iterations 25

nnU-Net gives each pixel one class, but labels overlap: with `combinations` each combination of labels that occurs is a
class, with `groups` one nnU-Net is trained for each group of labels that never overlap. The initial U-Net only says
which images are the labeled ones, and the input size. nnU-Net's default is 1000 epochs of 250 iterations; it draws
its random numbers itself, --seed only gives it another name. An interrupted training resumes where it stopped. Prints
`model id: <id>` as its last line.

Reads   a model by its id, the labeled images that it was trained on and their masks
Writes  a model, known by its id: on the ClearML server, or in runs/ without one; while it trains,
        data/<dataset>/nnunet/n<N>_<H>x<W>_seed<seed>/nnunet_<encoding>[_<epochs>x<iterations>]/ (unet_training/nnunet/)
"""
import argparse

from unet_training.models import ModelOptions, TrainedModel, add_common_arguments, add_seed_argument
from unet_training.nnunet.nnunet import NNUNetOptions
from unet_training.nnunet.training import train_nnunet
from utils.cli import run_stage, stage_parser
from utils.options import add_options, options_from


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.train_nnunet", __doc__)
    add_common_arguments(parser)
    add_seed_argument(parser)
    add_options(parser, ModelOptions)
    add_options(parser, NNUNetOptions)
    return parser


def main(args: argparse.Namespace) -> str:
    """Returns the id of the trained nnU-Net."""
    return train_nnunet(options_from(NNUNetOptions, args), args.seed, TrainedModel.from_args(args))


if __name__ == "__main__":
    run_stage(main, get_args_parser())
