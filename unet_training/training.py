"""Trains the initial U-Net on the first n labeled images (paper, section 2), or what it is compared with.

    python -m unet_training.training --gpu_id 0
    python -m unet_training.training --dataset phantom --num_train_samples 5 --epochs 40 --batch_size 4 --lr 4e-3 --base_width 8 --input_size 192 112

    python -m unet_training.training --architecture lraspp_on_sam --data_aug 0

The first line is the paper's setting, for a GPU; the second one takes about a minute on two CPU cores.
`lraspp_on_sam` trains an LR-ASPP head on SAM's frozen image encoder. Without augmentation the encoder sees each image
once; with it, at every step. Prints `model id: <id>` as its last line; the next stages take that id (`--model_id`, which
left out means a U-Net).

Reads   the labeled images and annotations of the data set, for `lraspp_on_sam` SAM's weights
Writes  a model, known by its id: on the ClearML server, or in runs/ without one; for `lraspp_on_sam` without
        augmentation data/<dataset>/sam_embeddings/<sam type>_lraspp_<sam_pixels>_<H>x<W>/<stem>.h5, 4 MB a labeled image
"""  # noqa: E501 (a command to copy)
import argparse
from pathlib import Path

import torch
from torch.utils.data import RandomSampler

from unet_training.arguments import (
    add_common_arguments,
    add_encoder_arguments,
    data_parameters,
    print_model_notice,
    resolve_sam,
    task_parameters,
)
from unet_training.checkpoint import Training
from unet_training.data import LabeledDataset, resident_batches
from unet_training.epoch import bce_loss
from unet_training.hyper_params import add_initial_arguments, add_training_arguments, schedule_from
from unet_training.networks.lraspp import LrasppOnSam
from unet_training.networks.network import Network
from unet_training.networks.registry import ARCHITECTURES, options_from_args
from unet_training.networks.registry import build as build_network
from unet_training.networks.stored_features import StoredFeatures
from unet_training.networks.u_net import UNet
from unet_training.trainer import fingerprint, fit, publish
from utils.cli import run_stage, select_device, stage_parser
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.paths import embedding_folder, training_state
from utils.tracking.experiment import start
from utils.tracking.offline_runs import runs_dir


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("unet_training.training", __doc__)
    add_common_arguments(parser)
    parser.add_argument("--architecture", choices=tuple(ARCHITECTURES), default=UNet.architecture,
                        help="the network; lraspp_on_sam has no use for --base_width")
    add_encoder_arguments(parser)
    add_initial_arguments(parser)
    add_training_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> str:
    """Returns the id of the trained model."""
    device = select_device(args.gpu_id)
    data = open_dataset(args.dataset, args.data_dir, args.input_size)
    train = LabeledDataset(data, data.stems("train", args.num_train_samples))
    validation = LabeledDataset(data, data.stems("val"))
    torch.manual_seed(args.seed)
    labels, shown = data.description.labels, validation[0][0]
    model = build(args, data).to(device)
    trained = model
    if isinstance(model, LrasppOnSam) and not args.data_aug:
        folder = features_folder(args, model)
        train, validation = (StoredFeatures(model, images, folder, device) for images in (train, validation))
        trained = model.head
    sampler = RandomSampler(train, replacement=True, num_samples=args.data_sample_per_epoch)
    train_batches = resident_batches(train, args.batch_size, device, sampler)
    val_batches = resident_batches(validation, args.infer_batch_size, device)
    loss_function = bce_loss(data.description.pos_weight, device)
    parameters = run_parameters(args, data)
    state_file = training_state(runs_dir(), fingerprint(parameters))
    with start("training", parameters, tags=(parameters["stage"], args.dataset)) as experiment:
        fit(trained, train_batches, val_batches, loss_function, schedule_from(args), device, experiment, labels,
            state_file, shown=shown)
        description = data.description
        training = Training(args.dataset, labels, description.input_size, description.mean, description.std)
        model_id = publish(experiment, model, training, state_file)
    print_model_notice(model)
    print(f"model id: {model_id}")
    return model_id


def run_parameters(args: argparse.Namespace, data: AnnotatedImages) -> dict:
    """What the result depends on: a training with the same ones is the same training."""
    return task_parameters(args, "initial" if args.architecture == UNet.architecture else args.architecture,
                           **data_parameters(data, data.stems("train", args.num_train_samples)))


def build(args: argparse.Namespace, data: AnnotatedImages) -> Network:
    """The untrained network that the arguments describe."""
    description, (sam_type, sam_checkpoint) = data.description, resolve_sam(args, data)
    options = options_from_args(args.architecture, args, sam_type=sam_type, sam_checkpoint=sam_checkpoint)
    return build_network(args.architecture, len(description.labels), description.input_size, description.mean,
                         description.std, options)


def features_folder(args: argparse.Namespace, model: LrasppOnSam) -> Path:
    """Of what SAM makes of images of this size without its positional embedding: nothing that other stages read."""
    return embedding_folder(args.data_dir, args.dataset, model.features_name)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
