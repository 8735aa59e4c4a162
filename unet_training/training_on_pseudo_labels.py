"""Trains the final U-Net on saved pseudo labels, raw or refined.

    python -m unet_training.training_on_pseudo_labels --gpu_id 0 --pseudo_label sam --prompt1st box --prompt2nd pos_points neg_points --num_train_samples 43
    python -m unet_training.training_on_pseudo_labels --dataset phantom --num_train_samples 5 --epochs 40 --batch_size 4 --lr 4e-3

The first line is the paper's setting, for a GPU; the second one takes a few minutes on two CPU cores.
The network has the initial one's architecture and input size; of an ensemble, its first member's. Prints
`model id: <id>` as its last line.

Reads   the masks that scripts.save_segmentations, scripts.save_refined_segmentations,
        scripts.save_random_walk_segmentations or scripts.save_nnunet_segmentations saved for the initial model,
        their images, and the labeled validation images
Writes  a model, known by its id: on the ClearML server, or in runs/ without one
"""  # noqa: E501 (a command to copy)
import argparse
import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset

from unet_training.data import (
    EpochLoader,
    LabeledDataset,
    PseudoLabelDataset,
    check_fills_batch,
    resident_batches,
)
from unet_training.epoch import Averaged, random_similarity, train_epoch
from unet_training.hyper_params import (
    TRAININGS,
    FinalOptions,
    LossOptions,
    Machine,
    Schedule,
    add_training_arguments,
)
from unet_training.models import Selection, TrainedModel, add_model_arguments
from unet_training.networks.registry import rebuild
from unet_training.pseudo_labels import PSEUDO_LABELS, PseudoLabels, add_pseudo_label_argument, add_pseudo_label_options
from unet_training.samplers import mix_batches
from unet_training.saved_masks import check_unsure, choose_stems, drop_unsure, open_saved_masks
from unet_training.trainer import Prepared
from unet_training.training_stage import Images, TrainingStage, train
from utils.cli import run_stage, stage_parser
from utils.mask_store import MaskStore
from utils.options import Preset, add_options, argument_group, option_values, options_from, positive_int


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("unet_training.training_on_pseudo_labels", __doc__)
    add_model_arguments(parser)
    add_final_arguments(parser)
    add_pseudo_label_argument(parser, default="sam")
    add_pseudo_label_options(parser)
    add_training_arguments(parser)
    return parser


def add_final_arguments(parser: argparse.ArgumentParser) -> None:
    group = argument_group(parser, FinalOptions.title)
    group.add_argument("--training", default="paper", action=Preset, values=TRAININGS,
                       help="recommended: --no-train_from_scratch --mixed --loss bce_dice --max_positive_weight 1 "
                            "--ema 0.999, each as far as it isn't given")
    add_options(group, FinalOptions)
    group.add_argument("--final_epochs", type=positive_int, help="passes of the final training (left out: --epochs)")
    add_options(group, LossOptions)


def main(args: argparse.Namespace) -> str:
    """Returns the id of the trained model."""
    initial = TrainedModel.from_args(args)
    labels = PSEUDO_LABELS[args.pseudo_label].from_args(args, initial.data)
    schedule = options_from(Schedule, args)
    training = FinalTraining(replace(schedule, epochs=args.final_epochs or schedule.epochs), args.seed, initial, labels,
                             options_from(Selection, args),
                             options_from(FinalOptions, args), options_from(LossOptions, args),
                             options_from(Machine, args))
    return train(training, initial.device)


@dataclass(frozen=True)
class FinalTraining(TrainingStage):
    """Trains a network of the initial one's architecture on the saved pseudo labels of its unlabeled images."""

    initial: TrainedModel
    labels: PseudoLabels
    selection: Selection
    options: FinalOptions
    loss: LossOptions
    machine: Machine

    module = "unet_training.training_on_pseudo_labels"

    @cached_property
    def parameters(self) -> dict[str, Any]:
        return {"stage": "final", **option_values(self.schedule, self.options, self.loss, self.selection),
                **self.labels.parameters, "masks": self.labels.variant, "pseudo_label": self.labels.kind,
                "seed": self.seed, "initial_model_id": self.initial.id, "num_train_samples": self.initial.num_labeled,
                **self.images.parameters, **self.labels.decided_by(self.initial)}

    @cached_property
    def images(self) -> Images:
        return Images(self.initial.data, self.initial.labeled_stems() if self.options.mixed else [], self.stems)

    @cached_property
    def masks(self) -> MaskStore:
        return open_saved_masks(self.labels, self.initial)

    @cached_property
    def stems(self) -> list[str]:
        """Of the images to train on."""
        check_unsure(self.labels, self.options.drop_unsure)
        stems = choose_stems(self.masks, self.initial, self.selection)
        return drop_unsure(stems, self.masks, self.options.drop_unsure)

    @property
    def tags(self) -> tuple[str, ...]:
        return "final", self.initial.data.description.name, self.labels.kind

    @property
    def input_models(self) -> tuple[str, ...]:
        return (self.initial.id,)

    def prepare(self, device: torch.device) -> Prepared:
        data = self.initial.data
        pseudo_labeled = PseudoLabelDataset(data, self.stems, self.masks)
        check_fills_batch(len(pseudo_labeled), self.schedule.batch_size, str(self.masks.path), "pseudo labels")
        validation = LabeledDataset(data, data.stems("val"))
        torch.manual_seed(self.seed)
        network = self.initial.network.student
        if self.options.train_from_scratch:
            network = rebuild(network.architecture, network.config).to(device)
        else:
            network = copy.deepcopy(network)
        model, run_epoch = network, train_epoch
        if self.options.mixed == "released":
            run_epoch = partial(run_epoch, draw_matrices=random_similarity)
        if self.options.ema is not None:
            model = Averaged(network, self.options.ema)
            network, run_epoch = model.average.module, partial(run_epoch, after_step=model.update)
        return Prepared(network, model, self._batches(pseudo_labeled),
                        resident_batches(validation, self.machine.infer_batch_size, device),
                        self.loss.build(data.description.pos_weight, device), self.initial.training,
                        self.schedule.gradient_bound(data.description), run_epoch)

    def _batches(self, pseudo_labeled: Dataset) -> EpochLoader:
        size, workers = self.schedule.batch_size, self.machine.num_workers
        loading = {"num_workers": workers, "persistent_workers": workers > 0}
        if not self.options.mixed:
            return EpochLoader(pseudo_labeled, size, shuffle=True, drop_last=True, **loading)
        labeled = LabeledDataset(self.initial.data, self.initial.labeled_stems())
        sampler = mix_batches(self.options.mixed, len(labeled), len(pseudo_labeled), size)
        return EpochLoader(ConcatDataset([labeled, pseudo_labeled]), batch_sampler=sampler, **loading)


if __name__ == "__main__":
    run_stage(main, get_args_parser(), shared=True)
