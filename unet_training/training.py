"""Trains the initial U-Net on the first n labelled images (paper, section 2).

    python -m unet_training.training --gpu_id 0
    python -m unet_training.training --dataset phantom --num_train_samples 5 --epochs 40 --batch_size 4 --lr 4e-3 --base_width 8 --input_size 192 112

The first line is the paper's setting, for a GPU; the second one takes about a minute on two CPU cores.
Prints `model id: <id>` as its last line; the next stages take that id.

Reads   the labelled images and annotations of the data set
Writes  a model, known by its id: on the ClearML server, or in runs/ without one
"""  # noqa: E501 (a command to copy)
import argparse

import torch
from torch.utils.data import RandomSampler

from scripts.arguments import add_common_arguments, task_parameters
from scripts.segmentation_dataset import LabelledDataset, open_dataset, resident_batches
from unet_training.epoch import bce_loss
from unet_training.hyper_params import add_initial_arguments, add_training_arguments, schedule_from
from unet_training.trainer import fingerprint, fit, publish
from unet_training.u_net import Training, UNet
from utils.cli import run_stage, select_device, stage_parser
from utils.experiment import start
from utils.offline_runs import runs_dir
from utils.paths import training_state


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("unet_training.training", __doc__)
    add_common_arguments(parser)
    add_initial_arguments(parser)
    add_training_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> str:
    """Returns the id of the trained model."""
    device = select_device(args.gpu_id)
    data = open_dataset(args.dataset, args.data_dir, args.input_size)
    train = LabelledDataset(data, data.stems("train", args.num_train_samples))
    validation = LabelledDataset(data, data.stems("val"))
    torch.manual_seed(args.seed)
    labels = data.description.labels
    model = UNet(len(labels), args.base_width, args.n_last_channel).to(device)
    sampler = RandomSampler(train, replacement=True, num_samples=args.data_sample_per_epoch)
    train_batches = resident_batches(train, args.batch_size, device, sampler)
    val_batches = resident_batches(validation, args.infer_batch_size, device)
    loss_function = bce_loss(data.description.positive_weights, device)
    parameters = task_parameters(args, "initial")
    state_file = training_state(runs_dir(), fingerprint(parameters))
    with start("training", parameters, tags=("initial", args.dataset)) as experiment:
        fit(model, train_batches, val_batches, loss_function, schedule_from(args), device, experiment, labels,
            state_file)
        training = Training(args.dataset, labels, data.description.input_size)
        model_id = publish(experiment, model, training, state_file)
    print(f"model id: {model_id}")
    return model_id


if __name__ == "__main__":
    run_stage(main, get_args_parser())
