"""Trains nnU-Net v2 on the labeled images, by its own commands (paper's comparison).

    pip install -r requirements_nnunet.txt
    python -m scripts.train_nnunet --gpu_id 0
    python -m scripts.train_nnunet --dataset phantom --num_train_samples 5 --nnunet_epochs 10 --nnunet_iterations 25

nnU-Net gives each pixel one class, but labels overlap: with `combinations` each combination of labels that occurs is a
class, with `groups` one nnU-Net is trained for each group of labels that never overlap. The initial U-Net only says
which images are the labeled ones, and the input size. nnU-Net's default is 1000 epochs of 250 iterations; it draws
its random numbers itself, --seed only gives it another name. An interrupted training goes on where it stopped. Prints
`model id: <id>` as its last line.

Reads   a model by its id, the labeled images that it was trained on and their masks
Writes  a model, known by its id: on the ClearML server, or in runs/ without one; while it trains,
        data/<dataset>/nnunet/n<N>_<H>x<W>_seed<seed>/nnunet_<encoding>[_<epochs>x<iterations>]/ (unet_training/nnunet/)
"""
import argparse
import shutil
import tempfile
from pathlib import Path

import torch

from unet_training.arguments import (
    OF_PSEUDO_LABELS,
    add_common_arguments,
    add_model_arguments,
    add_nnunet_arguments,
    data_parameters,
    labeled_stems,
    load_model_and_data,
    nnunet_kind,
    task_parameters,
)
from unet_training.nnunet.nnunet import NNUNet, find_command
from utils.cli import run_stage, select_device, stage_parser
from utils.datasets.annotated import AnnotatedImages
from utils.errors import InputError
from utils.paths import nnunet_folder
from utils.tracking.experiment import start
from utils.tracking.models import Model, fetch_model, find_models


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.train_nnunet", __doc__)
    add_common_arguments(parser)
    add_model_arguments(parser)
    add_nnunet_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> str:
    """Returns the id of the trained nnU-Net."""
    device = select_device(args.gpu_id)
    find_command()
    initial, _, _, data = load_model_and_data(args, device)
    stems = labeled_stems(args, initial, data)
    folder = nnunet_folder(args.data_dir, args.dataset, len(stems), data.description.input_size, args.seed)
    nnunet = NNUNet(folder / nnunet_kind(args), data, args.nnunet_encoding, args.nnunet_epochs, args.nnunet_iterations,
                    device)
    parameters = {**task_parameters(args, "nnunet", initial_model_id=initial.id), **identity(args, initial, data)}
    with start("train_nnunet", parameters, ("nnunet", args.dataset)) as experiment:
        experiment.use_model(initial.id)
        nnunet.train(stems)
        with tempfile.TemporaryDirectory() as scratch:
            archive = Path(scratch) / "nnunet.zip"
            nnunet.pack(archive)
            model_id = experiment.save_model(archive, data.description.labels)
    shutil.rmtree(nnunet.folder)
    print(f"model id: {model_id}")
    return model_id


def train_nnunet_if_missing(args: argparse.Namespace) -> Model:
    """The newest nnU-Net of these arguments, or else a new one."""
    initial, _, _, data = load_model_and_data(args, torch.device("cpu"))
    found = find_models(**identity(args, initial, data))
    return found[0] if found else fetch_model(main(args))


def find_nnunet(args: argparse.Namespace, initial: Model, data: AnnotatedImages) -> Model:
    """The newest nnU-Net of these arguments. Raises InputError if there is none."""
    wanted = identity(args, initial, data)
    found = find_models(**wanted)
    if not found:
        raise InputError(f"no nnU-Net was trained with {wanted}; do so with scripts.train_nnunet")
    return found[0]


def identity(args: argparse.Namespace, initial: Model, data: AnnotatedImages) -> dict:
    """The parameters by which an nnU-Net is found again: it doesn't depend on the initial model's weights."""
    stems = labeled_stems(args, initial, data)
    return {"stage": "nnunet", "dataset": args.dataset, "num_train_samples": len(stems), "seed": args.seed,
            "input_size": list(data.description.input_size), "images": data_parameters(data, stems)["images"],
            **{name: getattr(args, name) for name in OF_PSEUDO_LABELS["nnunet"]}}


if __name__ == "__main__":
    run_stage(main, get_args_parser())
