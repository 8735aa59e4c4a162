"""The hyperparameters of training (paper, section 2), as arguments with the paper's values."""
import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unet_training.epoch import bce_loss
from utils.options import non_negative, positive_float, positive_int


@dataclass(frozen=True)
class Schedule:
    """epochs: number of passes; lr: initial learning rate; data_aug, bf16: see `epoch.train_epoch`; compile: U-Nets by
    `torch.compile`."""

    epochs: int
    lr: float
    lr_scheduler: str
    data_aug: float
    bf16: bool = False
    compile: bool = False

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """Cosine annealing down to lr / 100 over all epochs, or a constant rate."""
        if self.lr_scheduler == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs, eta_min=self.lr / 100)
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=positive_int, default=350, help="passes over the training data")
    parser.add_argument("--lr", type=positive_float, default=1e-3, help="initial learning rate of AdamW")
    parser.add_argument("--lr_scheduler", choices=("cosine", "constant"), default="cosine",
                        help="learning rate over the epochs; cosine ends at lr / 100")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="images in a training batch")
    parser.add_argument("--infer_batch_size", type=positive_int, default=16, help="images in a validation batch")
    parser.add_argument("--data_aug", type=non_negative(float), default=0.03,
                        help="standard deviation of the random affine matrix's entries, 0 for no augmentation")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16 where the network allows, faster on a "
                        "GPU and on some processors; validation and prediction stay float32")
    parser.add_argument("--compile", action="store_true", help="compile the U-Net first (torch.compile), which takes "
                        "minutes and needs a C++ compiler; results change a little")


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num_workers", type=non_negative(int), default=0,
                        help="processes that read images beside the training; worth it for thousands of images")


def add_final_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train_from_scratch", action=argparse.BooleanOptionalAction, default=True,
                        help="start the final U-Net from random weights, or else fine-tune the initial one")
    parser.add_argument("--mixed", action="store_true", help="fill half of every batch with labeled images; the paper "
                        "combines it with --no-train_from_scratch")
    add_pos_weight_cap_argument(parser)


def add_pos_weight_cap_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that `loss_from` reads."""
    parser.add_argument("--max_positive_weight", type=positive_float, metavar="W",
                        help="after the initial training, bound the loss's positive weights by W (left out: the data "
                             "set's, as in the paper)")


def add_initial_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num_train_samples", type=int, default=43,
                        help="labeled images to train on, the first n of the list")
    parser.add_argument("--data_sample_per_epoch", type=positive_int, default=48,
                        help="images drawn with replacement in an epoch")
    parser.add_argument("--base_width", type=positive_int, default=64, help="channels of the U-Net's first level")
    parser.add_argument("--n_last_channel", type=positive_int, default=64, help="channels of the U-Net's last level")
    parser.add_argument("--input_size", type=positive_int, nargs=2, metavar=("H", "W"),
                        help="size of the network's input (left out: the data set's)")


def schedule_from(args: argparse.Namespace) -> Schedule:
    return Schedule(args.epochs, args.lr, args.lr_scheduler, args.data_aug, args.bf16, args.compile)


def loss_from(args: argparse.Namespace, weights: Sequence[float], device: torch.device) -> torch.nn.Module:
    """The loss with a data set's positive weights, bounded where the arguments say so."""
    return bce_loss([min(weight, args.max_positive_weight or weight) for weight in weights], device)
