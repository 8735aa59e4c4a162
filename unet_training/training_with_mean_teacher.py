"""Trains the initial U-Net further on labeled and unlabeled images with a mean teacher.

    python -m unet_training.training_with_mean_teacher --gpu_id 0
    python -m unet_training.training_with_mean_teacher --dataset phantom --num_train_samples 5 --epochs 9 --batch_size 4

    python -m unet_training.training_with_mean_teacher --reliable

Labeled and unlabeled images are shuffled together. The teacher is the result. With `--reliable` those unlabeled
images on whose masks SAM agrees with the U-Net enter as labeled. Prints `model id: <id>` as its last line.

Reads   a model by its id, the labeled images that it was trained on, the unlabeled images; with `--reliable` the
        masks that scripts.add_sam_agreement saved
Writes  a model, known by its id: on the ClearML server, or in runs/ without one
"""
import argparse
import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset

from unet_training.data import (
    EpochLoader,
    ImageDataset,
    LabeledDataset,
    PartlyLabeledDataset,
    PseudoLabelDataset,
    check_fills_batch,
    resident_batches,
)
from unet_training.hyper_params import LossOptions, Machine, MeanTeacherOptions, Schedule, add_training_arguments
from unet_training.mean_teacher import MeanTeacher, mean_teacher_epoch
from unet_training.models import DataOptions, Selection, TrainedModel, add_model_arguments
from unet_training.pseudo_labels import Agreement
from unet_training.saved_masks import mean_estimates, open_saved_masks
from unet_training.trainer import Prepared
from unet_training.training_stage import Images, TrainingStage, train
from utils.cli import run_stage, stage_parser
from utils.options import add_options, option_values, options_from
from utils.tracking.models import fetch_model


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("unet_training.training_with_mean_teacher", __doc__)
    add_model_arguments(parser)
    group = parser.add_argument_group("mean teacher")
    add_options(group, MeanTeacherOptions)
    group.add_argument("--dsc_sam_threshold", dest="reliable", type=float, metavar="DICE",
                       help="the same as --reliable DICE")
    add_options(group, LossOptions)
    Agreement.add_arguments(parser)
    add_training_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> str:
    """Returns the id of the trained model."""
    initial, options = TrainedModel.from_args(args), options_from(MeanTeacherOptions, args)
    judged = initial
    if options.reliable_model_id:
        judged = TrainedModel.load(fetch_model(options.reliable_model_id), options_from(DataOptions, args).open(),
                                   initial.device, args.infer_batch_size)
    reliable = None if options.reliable is None else Reliable(judged, Agreement.from_args(args, initial.data))
    training = MeanTeacherTraining(options_from(Schedule, args), args.seed, initial, options, reliable,
                                   options_from(Selection, args), options_from(LossOptions, args),
                                   options_from(Machine, args))
    return train(training, initial.device)


@dataclass(frozen=True)
class Reliable:
    """Whose masks enter as labels where SAM agrees with them: those of the mean teacher trained before, or of the
    initial network."""

    model: TrainedModel
    agreement: Agreement


@dataclass(frozen=True)
class MeanTeacherTraining(TrainingStage):
    """Trains a student, which starts from the initial network, and the teacher that follows it."""

    initial: TrainedModel
    options: MeanTeacherOptions
    reliable: Reliable | None
    selection: Selection
    loss: LossOptions
    machine: Machine

    module = "unet_training.training_with_mean_teacher"

    @cached_property
    def parameters(self) -> dict[str, Any]:
        judged = self.reliable.agreement.parameters if self.reliable else {}
        return {"stage": "mean_teacher", **option_values(self.schedule, self.options, self.loss, self.selection),
                **judged, "seed": self.seed, "initial_model_id": self.initial.id,
                "num_train_samples": self.initial.num_labeled, **self.images.parameters}

    @cached_property
    def images(self) -> Images:
        return Images(self.initial.data, self.initial.labeled_stems(), self.unlabeled_stems())

    @property
    def tags(self) -> tuple[str, ...]:
        return "mean_teacher", self.initial.data.description.name

    @property
    def input_models(self) -> tuple[str, ...]:
        judged = [self.reliable.model.id] if self.reliable else []
        return tuple(dict.fromkeys([self.initial.id, *judged]))

    def unlabeled_stems(self) -> list[str]:
        """Without the labeled images, which some data sets count among those that get pseudo labels."""
        labeled = set(self.initial.labeled_stems())
        return [stem for stem in self.initial.unlabeled_stems(self.selection) if stem not in labeled]

    def prepare(self, device: torch.device) -> Prepared:
        data, unlabeled = self.initial.data, self.unlabeled_stems()
        labeled = LabeledDataset(data, self.initial.labeled_stems())
        if self.reliable:
            masks = open_saved_masks(self.reliable.agreement, self.reliable.model)
            agreements = mean_estimates(masks, unlabeled)
            agreed = [unlabeled[index] for index in np.flatnonzero(agreements >= self.options.reliable)]
            print(f"{len(agreed)} of {len(unlabeled)} unlabeled images enter as labeled")
            labeled = ConcatDataset([labeled, PseudoLabelDataset(data, agreed, masks)])
            unlabeled = sorted(set(unlabeled) - set(agreed))
        images = PartlyLabeledDataset(labeled, ImageDataset(data, unlabeled))
        check_fills_batch(len(images), self.schedule.batch_size, f"data set {data.description.name}")
        torch.manual_seed(self.seed)
        workers = self.machine.num_workers
        train_batches = EpochLoader(images, self.schedule.batch_size, shuffle=True, drop_last=True,
                                    num_workers=workers, persistent_workers=workers > 0)
        validation = LabeledDataset(data, data.stems("val"))
        model = MeanTeacher(copy.deepcopy(self.initial.network.student), self.options.alpha)
        return Prepared(model.teacher, model, train_batches,
                        resident_batches(validation, self.machine.infer_batch_size, device),
                        self.loss.build(data.description.pos_weight, device), self.initial.training,
                        self.schedule.max_gradient_norm, mean_teacher_epoch)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
