"""Trained networks: chosen by id or by what they are, rebuilt, and applied to a data set.

    model = TrainedModel.choose("phantom", Path("data"), num_train_samples=5)
    for stem, probabilities in model.probabilities(model.data.stems("test")):
        ...
"""
import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from unet_training.checkpoint import Network, Training, load_checkpoint
from unet_training.data import ImageDataset
from unet_training.hyper_params import Machine
from unet_training.networks.u_net import UNet
from unet_training.prediction import predict
from unet_training.training_stage import data_parameters
from utils.cli import select_device
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.datasets.description import DATASET_NAMES, OWN
from utils.errors import InputError
from utils.options import add_options, argument_group, option, options_from, positive_int
from utils.paths import DATA
from utils.tracking.models import Model, describe, fetch_model, find_models

ALL = -1  # labeled images
PAPER_LABELED = 43
AUXILIARY = ("nnunet", "fold", "sam_decoder", "ensemble")  # stages of models that nobody means without naming them


@dataclass(frozen=True)
class DataOptions:
    """Which data set, and where it lies."""

    title: ClassVar[str] = "folders"
    dataset: str = option("graz", f"{', '.join(DATASET_NAMES)}, or your own, described by <data_dir>/NAME/{OWN}",
                          metavar="NAME")
    data_dir: Path = option(DATA, "folder of all data sets", type=Path)
    derived_dir: Path | None = option(None, "folder of the embeddings and masks that are made of the images (left out: "
                                            "<data_dir>, which then can't be read-only)", type=Path)

    def open(self, input_size: Sequence[int] | None = None, input_side: int | None = None) -> AnnotatedImages:
        """At that size (H, W) of the network's input; or at the description's, made so small that its longest side is
        `input_side`. Raises InputError as `open_dataset`."""
        data = open_dataset(self.dataset, self.data_dir, input_size)
        if input_side and not input_size:
            described = data.description
            data = data.with_input(fit_side(described.input_size, input_side), described.mean, described.std)
        data.derived_dir = self.derived_dir or self.data_dir
        return data


@dataclass(frozen=True)
class ModelOptions:
    """Which trained network."""

    title: ClassVar[str] = "initial network"
    model_id: str | None = option(None, "the network (left out: the newest of the data set as it is, "
                                        "--num_train_samples and, if that is given, --seed)")
    num_train_samples: int | None = option(
        None, "labeled images that the network was trained on (left out: all of your own data set, 43 of ours); -1: "
              "all", type=int, metavar="N")
    transfer: bool = option(False, "take a network of another data set, or of images that were read in another way")


@dataclass(frozen=True)
class Selection:
    """Which images get pseudo labels.

    Raises:
        InputError: `where` isn't of the form COLUMN=VALUE.
    """

    title: ClassVar[str] = "images for pseudo labels"
    split500: bool = option(True, "only the list of 500 unlabeled images, not all of them")
    include_annotated: bool = option(False, "all images that are there, annotated ones, too")
    where: tuple[str, ...] = option((), "all images that are there whose row of the data set's table has these values, "
                                        "such as cast=1", nargs="*", metavar="COLUMN=VALUE")
    sample_seed: int = option(42, "draws the 500 images where the data set has no list of its own", type=int)

    def __post_init__(self):
        if odd := [rule for rule in self.where if not rule.partition("=")[1]]:
            raise InputError(f"--where {odd[0]}: give a column of the data set's table and its value, as in cast=1")

    def stems(self, data: AnnotatedImages, num_labeled: int) -> list[str]:
        """As seen from a network that was trained on so many labeled images; those that can't be read are left out."""
        return data.readable(self.choose(data, num_labeled))

    def choose(self, data: AnnotatedImages, num_labeled: int) -> list[str]:
        """As `stems`, without a look at the images."""
        if self.include_annotated or self.where:
            return data.select(self.include_annotated, dict(rule.split("=", 1) for rule in self.where))
        return data.unlabeled_stems(num_labeled, self.split500, self.sample_seed)


def fit_side(size: Sequence[int], side: int, step: int = 16) -> tuple[int, int]:
    """That size (H, W) scaled down to a longest side, in steps that a U-Net halves four times; never scaled up."""
    scale = min(1, side / max(size))
    return tuple(max(2 * step, step * round(scale * length / step)) for length in size)


def count_labeled(number: int | None, data: AnnotatedImages) -> int:
    """How many labeled images are meant: `ALL`, so many, or, with None, all of a data set of the user's own and the
    paper's number of one of ours."""
    if number is None:
        number = PAPER_LABELED if data.description.name in DATASET_NAMES else ALL
    return len(data.stems("train")) if number == ALL else number


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, DataOptions, only=("dataset",))
    parser.add_argument("--gpu_id", type=int, help="GPU to use (left out: the first one, or the CPU)")
    add_options(parser, DataOptions)
    group = argument_group(parser, Machine.title)
    group.add_argument("--threads", type=positive_int, metavar="N",
                       help="of an operation on the CPU (left out: as many as there are cores); weights are rounded "
                            "differently with another number, so it is recorded with the model")
    group.add_argument("--record_diff", action=argparse.BooleanOptionalAction, default=True,
                       help="ClearML keeps what is changed in the working tree with a run, whatever it says")
    group.add_argument("--upload_masks", action=argparse.BooleanOptionalAction, default=True,
                       help="masks go to the ClearML server, if there is one, for other machines")


def add_seed_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--seed", type=int, default=42, help="seed of all random numbers")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a stage that starts from a trained network and the images without labels."""
    add_common_arguments(parser)
    add_seed_argument(parser)
    add_options(parser, ModelOptions, only=("model_id", "num_train_samples"))
    add_options(parser, ModelOptions)
    add_options(parser, Selection)


def add_saving_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a stage that applies a trained network to the images without labels."""
    add_model_arguments(parser)
    add_batch_argument(parser)


def add_batch_argument(parser: argparse.ArgumentParser) -> None:
    argument_group(parser, Machine.title).add_argument(
        "--infer_batch_size", type=positive_int, default=16, help="images the network sees at once")


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and the data set that it is applied to.

    Attributes:
        record: its id, and what it was made with
        network: in evaluation mode, on `device`
        training: what it was trained on
        data: the data set as the network takes it: at its input size, with its mean and std
        batch_size: images that it sees at once on a GPU
    """

    record: Model
    network: Network
    training: Training
    data: AnnotatedImages
    device: torch.device
    batch_size: int = 16

    @classmethod
    def from_args(cls, args: argparse.Namespace, stage: str | None = "initial") -> "TrainedModel":
        """Of the arguments of `add_model_arguments`. Raises InputError as `choose_record` and `load`."""
        data, which = options_from(DataOptions, args).open(), options_from(ModelOptions, args)
        seed = args.seed if "seed" in getattr(args, "given", ()) else None
        record = choose_record(data, which, stage, seed)
        return cls.load(record, data, select_device(args.gpu_id), getattr(args, "infer_batch_size", cls.batch_size),
                        which.transfer)

    @classmethod
    def load(cls, record: Model, data: AnnotatedImages, device: torch.device, batch_size: int = 16,
             transfer: bool = False) -> "TrainedModel":
        """Rebuilds a network for a data set.

        Raises:
            InputError: its labels are not the data set's, its file can't be used, or it is an nnU-Net or a SAM's mask
                decoder; without `transfer` also if it was trained on another data set.
        """
        if record.parameters.get("stage") == "nnunet":
            raise InputError(f"model id {record.id}: is an nnU-Net; name the initial model that it belongs to, "
                             f"{record.parameters['initial_model_id']}, and --pseudo_label nnunet where its masks are "
                             "meant")
        if record.parameters.get("stage") == "sam_decoder":
            raise InputError(f"model id {record.id}: is a mask decoder of SAM; name it with --sam_model_id, and with "
                             f"--model_id the initial model, such as {record.parameters['initial_model_id']}")
        network, training = load_checkpoint(record.weights, device)
        training.check_data(data.description, transfer)
        seen = data.with_input(training.input_size, training.mean, training.std)
        return cls(record, network, training, seen, device, batch_size)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def num_labeled(self) -> int:
        """How many images are labeled, as seen from the model."""
        return self.record.parameters["num_train_samples"]

    def labeled_stems(self) -> list[str]:
        """The images that the model was trained on."""
        return self.data.stems("train", self.num_labeled)

    def unlabeled_stems(self, selection: Selection) -> list[str]:
        """The images without labels, as seen from the model: those it was not trained on."""
        return selection.stems(self.data, self.num_labeled)

    def print_notice(self) -> None:
        """Says what must be said of results of the SAM that the network stands on, if anything."""
        if self.network.notice:
            print(f"{self.network.architecture}: {self.network.notice}")

    def probabilities(self, stems: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (stem, probabilities), float32, (C, H, W), in [0, 1], with a progress bar."""
        return predict(self.network, ImageDataset(self.data, stems), self.device, self.batch_size)


def choose_record(data: AnnotatedImages, which: ModelOptions, stage: str | None = "initial", seed: int | None = None,
                  architecture: str = UNet.architecture) -> Model:
    """The model of that id, or the newest of that stage, data set, architecture, number of labeled images and, if it is
    given, seed; it says which. An initial one was trained on the labeled images as they are.

    Without a stage there must be exactly one.

    Raises:
        InputError: no model is meant beyond doubt; the message lists the ids there are.
    """
    if which.model_id:
        return fetch_model(which.model_id)
    dataset, number = data.description.name, count_labeled(which.num_train_samples, data)
    wanted = {"dataset": dataset, "num_train_samples": number} | ({} if seed is None else {"seed": seed})
    if stage == "initial":
        wanted |= {"stage": stage, "architecture": architecture}
    models = [model for model in find_models(**wanted) if model.parameters.get("stage") not in AUXILIARY]
    meant = f"data set {dataset} with {number} labeled images" + ("" if seed is None else f" and seed {seed}")
    if stage == "initial" and models:
        labeled = data_parameters(data, data.stems("train", number))["data_sha256"]
        of_others = [model for model in models if model.parameters.get("data_sha256", labeled) != labeled]
        models = [model for model in models if model not in of_others]
        if not models:
            raise InputError(f"the models of {meant} were trained on other images or masks than those in "
                             f"{data.folder}; train one on these, or name one with --model_id. There are: "
                             f"{describe(of_others)}")
    if len(models) == 1 or (models and stage):
        print(f"model: {models[0].id}" + (f", the newest of {len(models)}" if len(models) > 1 else ""))
        return models[0]
    problem = "several models" if models else f"no {stage or 'trained'} model"
    known = describe(models or find_models())
    raise InputError(f"{problem} of {meant}; name one with --model_id or train one with unet_training.training. There "
                     f"are: {known}")
