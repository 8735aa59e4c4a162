"""The options of the trainings, as arguments with the paper's values (the paper's section on implementation)."""
import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from unet_training.epoch import BCEDiceLoss, bce_loss
from utils.datasets.description import DatasetDescription
from utils.errors import InputError
from utils.options import add_options, argument_group, non_negative, option, positive_float, positive_int

RELIABLE = 0.85  # agreement of SAM, a Dice, from which on a mask enters as a label where no other is given


@dataclass(frozen=True)
class Schedule:
    """How a network is trained; the optimizer is AdamW."""

    title: ClassVar[str] = "training"
    epochs: int = option(350, "passes over the training data", type=positive_int)
    lr: float = option(1e-3, "initial learning rate of AdamW", type=positive_float)
    lr_scheduler: str = option("cosine", "learning rate over the epochs; cosine ends at lr / 100",
                               choices=("cosine", "constant"))
    weight_decay: float = option(0.0, "weight decay of AdamW", type=non_negative(float))
    batch_size: int = option(16, "images in a training batch", type=positive_int)
    data_aug: float = option(0.03, "standard deviation of the random affine matrix's entries, 0 for no augmentation",
                             type=non_negative(float))
    max_gradient_norm: float | None = option(
        None, "scale gradients of a larger norm down to this one (left out: the data set's bound, which is not for the "
              "mean teacher, or none)", type=positive_float, metavar="NORM")
    bf16: bool = option(False, "train in bfloat16 where the network allows, faster on a GPU and on some processors; "
                               "validation and prediction stay float32")
    compile: bool = option(False, "compile the U-Net first (torch.compile), which takes minutes and needs a C++ "
                                  "compiler; results change a little")

    def gradient_bound(self, description: DatasetDescription) -> float | None:
        """The largest norm of gradients that is left as it is; None for any."""
        return self.max_gradient_norm or description.max_gradient_norm

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """Cosine annealing down to lr / 100 over all epochs, or a constant rate."""
        if self.lr_scheduler == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs, eta_min=self.lr / 100)
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)


@dataclass(frozen=True)
class Machine:
    """What makes a training faster or slower, and leaves its result as it is."""

    title: ClassVar[str] = "machine"
    infer_batch_size: int = option(16, "images in a batch of validation or prediction", type=positive_int)
    num_workers: int = option(0, "processes that read images beside the training; worth it for thousands of images",
                              type=non_negative(int))


@dataclass(frozen=True)
class Sampling:
    """Which images the initial training sees; `num_train_samples` as `models.count_labeled` takes it."""

    title: ClassVar[str] = "initial network"
    num_train_samples: int | None = option(
        None, "labeled images to train on, the first n of the list (left out: all of your own data set, 43 of ours, as "
              "in the paper); -1: all", type=int, metavar="N")
    data_sample_per_epoch: int = option(48, "images drawn with replacement in an epoch", type=positive_int)


@dataclass(frozen=True)
class LossOptions:
    """What a training on pseudo labels minimizes."""

    title: ClassVar[str] = "final network"
    loss: str = option("bce", "bce: binary cross entropy; bce_dice: and the soft Dice", choices=("bce", "bce_dice"))
    max_positive_weight: float | None = option(
        None, "after the initial training, cap on pos_weight, the loss's weights per class (left out: the data set's "
              "weights, as in the paper)", type=positive_float, metavar="W")

    def build(self, pos_weight: Sequence[float], device: torch.device) -> torch.nn.Module:
        """The loss with a data set's pos_weight under the cap."""
        build = {"bce": bce_loss, "bce_dice": BCEDiceLoss}[self.loss]
        return build([min(weight, self.max_positive_weight or weight) for weight in pos_weight], device)


def share(text: str) -> float:
    """An argparse type of 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a share from 0 to below 1")
    return value


@dataclass(frozen=True)
class InitialOptions:
    """How the initial network learns from its few labeled images."""

    title: ClassVar[str] = "initial network"
    initial_training: str = option(
        "paper", "recommended: the sum of cross entropy without pos_weight and soft Dice, and the average of the "
                 "weights (--loss bce_dice --max_positive_weight 1 --ema 0.999 of the final training)",
        choices=("paper", "recommended"))
    start_from: str | None = option(
        None, "start from this network of the same labels, architecture and width, such as the final one of the round "
              "before more was annotated (left out: random weights)", metavar="ID")

    @property
    def loss(self) -> LossOptions:
        return RECOMMENDED_LOSS if self.initial_training == "recommended" else LossOptions()

    @property
    def ema(self) -> float | None:
        """As of `FinalOptions`."""
        return RECOMMENDED_FINAL.ema if self.initial_training == "recommended" else None


@dataclass(frozen=True)
class FinalOptions:
    """Where the final training starts from, and what it sees."""

    title: ClassVar[str] = "final network"
    train_from_scratch: bool = option(True, "start the final U-Net from random weights, or else fine-tune the initial "
                                            "one")
    mixed: str | None = option(
        None, "fill half of every batch with labeled images: half (if nothing is named) passes over all pseudo labels "
              "in an epoch; released, as the authors' training_with_mixed_labels.py, over all labeled images, and "
              "turns, scales and shifts a fifth of them (give it --epochs 3000 --lr 1e-4 --no-lr_scheduler). The paper "
              "combines it with --no-train_from_scratch", nargs="?", const="half", choices=("half", "released"))
    ema: float | None = option(
        None, "the network is the moving average of its weights, of which a step keeps this share or, in the first "
              "thousands of steps, less (left out: the weights after the last step)", type=share, metavar="SHARE")
    drop_unsure: float = option(
        0.0, "leave out this share of the pseudo-labeled images, those with the lowest estimated Dice", type=share,
        metavar="SHARE")


RECOMMENDED_LOSS = LossOptions(loss="bce_dice", max_positive_weight=1.0)
RECOMMENDED_FINAL = FinalOptions(train_from_scratch=False, mixed="half", ema=0.999)
RECOMMENDED_ENSEMBLE = 3  # initial networks
TRAININGS = {"paper": {}, "recommended": {
    "loss": RECOMMENDED_LOSS.loss, "max_positive_weight": RECOMMENDED_LOSS.max_positive_weight,
    "train_from_scratch": RECOMMENDED_FINAL.train_from_scratch, "mixed": RECOMMENDED_FINAL.mixed,
    "ema": RECOMMENDED_FINAL.ema}}


@dataclass(frozen=True)
class MeanTeacherOptions:
    """`reliable` is a Dice; None: no pseudo label enters as a label."""

    alpha: float = option(0.996, "share of the teacher that each step keeps", type=float)
    reliable: float | None = option(
        None, f"take masks as labels on which SAM agrees by this Dice or more; {RELIABLE} if it isn't given",
        type=float, nargs="?", const=RELIABLE, metavar="DICE")
    reliable_model_id: str | None = option(
        None, "the model whose masks and agreement --reliable takes, such as a mean teacher trained before (left out: "
              "the initial model)", metavar="ID")

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise InputError(f"--alpha {self.alpha}: give a share from 0 to 1")
        if self.reliable is not None and not 0 <= self.reliable <= 1:
            raise InputError(f"--reliable {self.reliable}: give a Dice from 0 to 1")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, Schedule)
    argument_group(parser, Schedule.title).add_argument(
        "--no-lr_scheduler", dest="lr_scheduler", action="store_const", const="constant",
        help="the same as --lr_scheduler constant")
    add_options(parser, Machine)
