"""Trains the initial U-Net on the first n labeled images, or what it is compared with.

    python -m unet_training.training --gpu_id 0
    python -m unet_training.training --dataset phantom --num_train_samples 5 --epochs 40 --batch_size 4 --lr 4e-3 --base_width 8 --input_size 192 112

    python -m unet_training.training --architecture lraspp_on_sam --data_aug 0

The first line is the paper's setting, for a GPU; the second one takes about a minute on two CPU cores.
`lraspp_on_sam` trains an LR-ASPP head on SAM's frozen image encoder. Without augmentation the encoder sees each image
once; with it, at every step. Prints `model id: <id>` as its last line; the next stages take that id (`--model_id`, which
left out means a U-Net).

Reads   the labeled images and annotations of the data set, for `lraspp_on_sam` SAM's weights
Writes  a model, known by its id: on the ClearML server, or in runs/ without one; for `lraspp_on_sam` without
        augmentation data/<dataset>/sam_embeddings/<sam type>_no_pos_<H>x<W>/<stem>.h5, 4 MB a labeled image
"""  # noqa: E501 (a command to copy)
import argparse
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch.utils.data import RandomSampler

from segment_anything.options import EncoderOptions
from unet_training.checkpoint import Network, Training
from unet_training.data import LabeledDataset, resident_batches
from unet_training.epoch import Averaged, train_epoch
from unet_training.hyper_params import InitialOptions, Sampling, Schedule, add_training_arguments
from unet_training.models import DataOptions, TrainedModel, add_common_arguments, add_seed_argument, count_labeled
from unet_training.networks.registry import Architecture, add_architecture_arguments
from unet_training.networks.stored_features import StoredFeatures
from unet_training.trainer import Prepared
from unet_training.training_stage import Images, TrainingStage, train
from utils.cli import run_stage, select_device, stage_parser
from utils.datasets.annotated import AnnotatedImages
from utils.errors import InputError
from utils.options import add_options, argument_group, option_values, options_from, positive_int
from utils.paths import embedding_folder
from utils.tracking.models import fetch_model

PAPER = InitialOptions()


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("unet_training.training", __doc__)
    add_common_arguments(parser)
    add_seed_argument(parser)
    add_initial_arguments(parser)
    add_options(argument_group(parser, "SAM"), EncoderOptions)
    add_training_arguments(parser)
    return parser


def add_initial_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, Sampling)
    add_options(parser, InitialOptions)
    group = argument_group(parser, InitialOptions.title)
    group.add_argument("--input_size", type=positive_int, nargs=2, metavar=("H", "W"),
                       help="size of the network's input (left out: the data set's)")
    group.add_argument("--input_side", type=positive_int, metavar="PIXELS",
                       help="longest side of the network's input, at the data set's aspect, in the place of both")
    add_architecture_arguments(group)


def main(args: argparse.Namespace) -> str:
    """Returns the id of the trained model."""
    device = select_device(args.gpu_id)
    data = options_from(DataOptions, args).open(args.input_size, args.input_side)
    training = InitialTraining(options_from(Schedule, args), args.seed, data, Architecture.from_args(args, data),
                               options_from(Sampling, args), args.infer_batch_size, options_from(InitialOptions, args))
    return train(training, device)


@dataclass(frozen=True)
class InitialTraining(TrainingStage):
    """Trains a network of `architecture` on the first labeled images of `data`."""

    data: AnnotatedImages
    architecture: Architecture
    sampling: Sampling
    infer_batch_size: int
    options: InitialOptions = PAPER

    module = "unet_training.training"

    @property
    def stems(self) -> list[str]:
        """The labeled images."""
        return self.data.stems("train", count_labeled(self.sampling.num_train_samples, self.data))

    @cached_property
    def parameters(self) -> dict[str, Any]:
        return {"stage": "initial", **option_values(self.schedule, self.sampling, self.options), "seed": self.seed,
                "num_train_samples": len(self.stems), **self.architecture.parameters,
                **self.images.parameters}

    @cached_property
    def images(self) -> Images:
        return Images(self.data, self.stems)

    @property
    def tags(self) -> tuple[str, ...]:
        return "initial", self.architecture.name, self.data.description.name

    @property
    def input_models(self) -> tuple[str, ...]:
        return (self.options.start_from,) if self.options.start_from else ()

    def prepare(self, device: torch.device) -> Prepared:
        labeled = LabeledDataset(self.data, self.stems)
        validation = LabeledDataset(self.data, self.data.stems("val"))
        torch.manual_seed(self.seed)
        description, shown = self.data.description, validation[0][0]
        network = self.architecture.build(description).to(device)
        if self.options.start_from:
            network.load_state_dict(self._read_start(network).state_dict())
        model: torch.nn.Module = network
        if network.features_name and not self.schedule.data_aug:  # then its frozen part sees each image once
            model = network.head
            folder = embedding_folder(self.data.derived_dir, description.name, network.features_name)
            labeled, validation = (StoredFeatures(network, images, folder, device) for images in (labeled, validation))
        sampler = RandomSampler(labeled, replacement=True, num_samples=self.sampling.data_sample_per_epoch)
        training = Training.on(description)
        run_epoch = train_epoch
        if self.options.ema is not None:
            averaged = Averaged(model, self.options.ema)
            if model is network:
                network = averaged.average.module
            else:
                network.head = averaged.average.module
            model, run_epoch = averaged, partial(train_epoch, after_step=averaged.update)
        return Prepared(network, model, resident_batches(labeled, self.schedule.batch_size, device, sampler),
                        resident_batches(validation, self.infer_batch_size, device),
                        self.options.loss.build(description.pos_weight, device), training,
                        self.schedule.gradient_bound(description), run_epoch, shown)

    def _read_start(self, like: Network) -> Network:
        """The network to start from, on the CPU. Raises an InputError where its weights don't fit."""
        model = TrainedModel.load(fetch_model(self.options.start_from), self.data, torch.device("cpu"))
        network = model.network.student
        for name, value in {"architecture": like.architecture, **like.config}.items():
            there = network.architecture if name == "architecture" else network.config.get(name)
            if there != value:
                raise InputError(f"--start_from {model.id}: its {name} is {there}, not {value}; give --{name} {there}")
        return network


if __name__ == "__main__":
    run_stage(main, get_args_parser(), shared=True)
