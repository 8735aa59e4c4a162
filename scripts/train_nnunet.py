"""Trains nnU-Net v2 on the labelled images, by its own commands (paper's comparison).

    pip install -r requirements_nnunet.txt
    python -m scripts.train_nnunet --gpu_id 0
    python -m scripts.train_nnunet --dataset phantom --num_train_samples 5 --nnunet_epochs 10 --nnunet_iterations 25

nnU-Net gives each pixel one class, but labels overlap: with `combinations` each combination of labels that occurs is a
class, with `groups` one nnU-Net is trained for each group of labels that never overlap. The initial U-Net only says
which images are the labelled ones, and the input size. nnU-Net's default is 1000 epochs of 250 iterations; it draws
its random numbers itself, --seed only gives it another folder. A rerun goes on where it stopped.

Reads   a model by its id, the labelled images that it was trained on and their masks
Writes  data/<dataset>/nnunet/n<N>_<H>x<W>_seed<seed>/nnunet_<encoding>[_<epochs>x<iterations>]/ (see scripts/nnunet.py)
"""
import argparse
from pathlib import Path

import torch

from scripts.arguments import (
    add_common_arguments,
    add_model_arguments,
    add_nnunet_arguments,
    labelled_stems,
    load_model_and_data,
    nnunet_kind,
    task_parameters,
)
from scripts.nnunet import NNUNet, find_command
from scripts.segmentation_dataset import AnnotatedImages
from utils.cli import run_stage, select_device, stage_parser
from utils.experiment import Model, start
from utils.paths import nnunet_folder


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.train_nnunet", __doc__)
    add_common_arguments(parser)
    add_model_arguments(parser)
    add_nnunet_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns nnU-Net's folder."""
    device = select_device(args.gpu_id)
    find_command()
    model, _, _, data = load_model_and_data(args, device)
    nnunet = nnunet_of(args, model, data, device)
    with start("train_nnunet", task_parameters(args, "nnunet"), ("nnunet", args.dataset)) as experiment:
        experiment.use_model(model.id)
        nnunet.train()
    print(f"nnU-Net: {nnunet.folder}")
    return nnunet.folder


def nnunet_of(args: argparse.Namespace, model: Model, data: AnnotatedImages, device: torch.device) -> NNUNet:
    """nnU-Net on the images that the model was trained on."""
    stems = labelled_stems(args, model, data)
    folder = nnunet_folder(args.data_dir, args.dataset, len(stems), data.description.input_size, args.seed)
    return NNUNet(folder / nnunet_kind(args), data, stems, args.nnunet_encoding, args.nnunet_epochs,
                  args.nnunet_iterations, device)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
