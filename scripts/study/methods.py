"""The methods that a study compares, and what is alike for all of them.

To add a method, enter it in `METHODS`; scripts.run_study and scripts.plot_results then know it.
"""
import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from segment_anything.refinement.agreement import AgreementOptions
from segment_anything.refinement.refine import RefinementOptions
from segment_anything.tuned_decoder import TunedDecoder
from unet_training.data import check_fills_batch
from unet_training.hyper_params import (
    RECOMMENDED_FINAL,
    RECOMMENDED_LOSS,
    RELIABLE,
    FinalOptions,
    InitialOptions,
    LossOptions,
    Machine,
    MeanTeacherOptions,
    Sampling,
    Schedule,
    add_training_arguments,
)
from unet_training.models import (
    ALL,
    DataOptions,
    Selection,
    TrainedModel,
    add_common_arguments,
    count_labeled,
)
from unet_training.networks.registry import Architecture
from unet_training.pseudo_labels import (
    PSEUDO_LABELS,
    Agreement,
    PseudoLabels,
    Recommended,
    RecommendedOptions,
    SamRefined,
    add_pseudo_label_options,
)
from unet_training.sam_decoder.training import DecoderTuning, TuningOptions
from unet_training.saved_masks import save_masks
from unet_training.training import InitialTraining, add_initial_arguments
from unet_training.training_on_pseudo_labels import FinalTraining, add_final_arguments
from unet_training.training_stage import train_if_missing
from unet_training.training_with_mean_teacher import MeanTeacherTraining, Reliable
from utils.cli import select_device
from utils.datasets.annotated import AnnotatedImages
from utils.options import add_options, options_from
from utils.tracking.models import fetch_model

MIXED = FinalOptions(train_from_scratch=False, mixed="half")
TUNING = TuningOptions()


@dataclass(frozen=True)
class Setting:
    """What is alike for all methods at one number of labeled images and seed.

    Attributes:
        data: the data set at the initial network's input size
        labels: the kinds of pseudo labels by name; beside them "medsam", by the box alone, "recommended" and
            "nnunet_bce"
        final_schedule: of all trainings after the initial one
        others: see their classes
    """

    data: AnnotatedImages
    device: torch.device
    seed: int
    architecture: Architecture
    lraspp: Architecture
    sampling: Sampling
    initial: InitialOptions
    schedule: Schedule
    final_schedule: Schedule
    selection: Selection
    final: FinalOptions
    loss: LossOptions
    machine: Machine
    labels: Mapping[str, PseudoLabels]

    @classmethod
    def from_args(cls, args: argparse.Namespace, **changes: Any) -> "Setting":
        """Of the arguments of `add_setting_arguments`; `changes` take the place of some."""
        args = argparse.Namespace(**{**vars(args), **changes})
        data = options_from(DataOptions, args).open(args.input_size, getattr(args, "input_side", None))
        labels = {kind: made.from_args(args, data) for kind, made in PSEUDO_LABELS.items()}
        sam, refinement = labels["sam"].sam, options_from(RefinementOptions, args)
        labels["medsam"] = SamRefined(sam.of_type("medsam", data),
                                      replace(refinement, prompt1st=("box",), prompt2nd=()))
        labels["recommended"] = Recommended(sam, RecommendedOptions("recommended"))
        bce = replace(labels["nnunet"].options, nnunet_encoding="regions_bce")
        labels["nnunet_bce"] = replace(labels["nnunet"], options=bce)
        schedule = options_from(Schedule, args)
        return cls(data, select_device(args.gpu_id), args.seed, Architecture.from_args(args, data),
                   Architecture.from_args(args, data, "lraspp_on_sam"), options_from(Sampling, args),
                   options_from(InitialOptions, args), schedule,
                   replace(schedule, epochs=args.final_epochs or schedule.epochs), options_from(Selection, args),
                   options_from(FinalOptions, args), options_from(LossOptions, args), options_from(Machine, args),
                   labels)

    @property
    def num_labeled(self) -> int:
        return count_labeled(self.sampling.num_train_samples, self.data)

    def check(self, final: bool) -> None:
        """Tells mistakes in what comes late before the hours of training.

        Args:
            final: whether pseudo labels will be trained on
        Raises:
            InputError: the number of labeled images or the batch size has no meaning.
        """
        self.data.stems("train", self.num_labeled)
        unlabeled = self.selection.stems(self.data, self.num_labeled)
        if final:
            check_fills_batch(len(unlabeled), self.schedule.batch_size, f"data set {self.data.description.name}",
                              "unlabeled images")

    def can_measure_unlabeled(self) -> bool:
        """Whether the ground truth of all images for pseudo labels is known."""
        return all(map(self.data.has_ground_truth, self.selection.stems(self.data, self.num_labeled)))

    def load(self, model_id: str) -> TrainedModel:
        return TrainedModel.load(fetch_model(model_id), self.data, self.device, self.machine.infer_batch_size)

    def initial_training(self, **changes: Any) -> InitialTraining:
        """`changes` are fields of `InitialTraining`."""
        return replace(InitialTraining(self.schedule, self.seed, self.data, self.architecture, self.sampling,
                                       self.machine.infer_batch_size, self.initial), **changes)

    def train_initial(self, **changes: Any) -> TrainedModel:
        """Trains the initial network if it isn't there."""
        return self.load(train_if_missing(self.initial_training(**changes), self.device))

    def final_training(self, initial: TrainedModel, kind: str, **changes: Any) -> FinalTraining:
        """On the saved pseudo labels of that kind; `changes` are fields of `FinalTraining`."""
        return replace(FinalTraining(self.final_schedule, self.seed, initial, self.labels[kind], self.selection,
                                     self.final, self.loss, self.machine), **changes)

    def train_final(self, initial: TrainedModel, kind: str, **changes: Any) -> TrainedModel:
        """Trains the final network if it isn't there."""
        return self.load(train_if_missing(self.final_training(initial, kind, **changes), self.device))

    def train_mean_teacher(self, initial: TrainedModel, judged: TrainedModel | None = None) -> TrainedModel:
        """Trains a mean teacher; with `judged`, that model's masks enter as labels where SAM agrees with them."""
        options, reliable = MeanTeacherOptions(), None
        if judged is not None:
            options = MeanTeacherOptions(reliable=RELIABLE, reliable_model_id=judged.id)
            reliable = Reliable(judged, Agreement(self.labels["sam"].sam, AgreementOptions()))
            save_masks(reliable.agreement, judged, self.selection)
        training = MeanTeacherTraining(self.final_schedule, self.seed, initial, options, reliable, self.selection,
                                       self.loss, self.machine)
        return self.load(train_if_missing(training, self.device))


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of all stages from the initial to the final network."""
    add_common_arguments(parser)
    add_options(parser, Selection)
    add_initial_arguments(parser)
    add_final_arguments(parser)
    add_pseudo_label_options(parser)
    add_training_arguments(parser)


class Measured(NamedTuple):
    """Which masks stand for a method on the test images: of this model, by this kind of `Setting.labels`.

    `trained_on` are the pseudo labels of the final network, and `labeler` the network that they were made from; where
    they are left out, those of the method's name, and the initial one.
    """

    model: TrainedModel
    kind: str = "raw"
    trained_on: PseudoLabels | None = None
    labeler: TrainedModel | None = None


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        title: as the paper calls it, where it has it
        run: trains what is missing
        kinds: of `Setting.labels` that it uses
        final: whether it trains on the pseudo labels of `kinds`, whose Dice is then measured, too
        optional: whether its weights or packages are not everybody's, or it isn't among the paper's
    """

    title: str
    run: Callable[[Setting, TrainedModel], Measured]
    kinds: tuple[str, ...] = ()
    final: bool = False
    optional: bool = False


def _refine_only(kind: str) -> Callable[[Setting, TrainedModel], Measured]:
    """The initial network's masks of the test images, refined; no second training."""
    return lambda _, initial: Measured(initial, kind)


def _final(kind: str, **changes: Any) -> Callable[[Setting, TrainedModel], Measured]:
    """The final network on pseudo labels, which are made first."""
    def run(setting: Setting, initial: TrainedModel) -> Measured:
        save_masks(setting.labels[kind], initial, setting.selection)
        return Measured(setting.train_final(initial, kind, **changes))
    return run


def _recommended(rounds: int) -> Callable[[Setting, TrainedModel], Measured]:
    """Recommended refinement and training; the final network of a round is the initial one of the next."""
    def run(setting: Setting, initial: TrainedModel) -> Measured:
        labels, labeler, final = setting.labels["recommended"], initial, initial
        for _ in range(rounds):
            labeler = final
            save_masks(labels, labeler, setting.selection)
            final = setting.train_final(labeler, "recommended", options=RECOMMENDED_FINAL, loss=RECOMMENDED_LOSS)
        return Measured(final, trained_on=labels, labeler=labeler)
    return run


def _final_of_tuned_sam(setting: Setting, initial: TrainedModel) -> Measured:
    """SAM's mask decoder is fine-tuned first; pseudo labels and final network as with SAM's own."""
    labels = setting.labels["sam"]
    tuning = DecoderTuning(TUNING, setting.seed, labels.sam, initial)
    tuned = replace(labels, sam=replace(labels.sam, tuned=TunedDecoder.fetch(tuning.run_if_missing())))
    save_masks(tuned, initial, setting.selection)
    return Measured(setting.train_final(initial, "sam", labels=tuned), trained_on=tuned)


def _reliable_mean_teacher(setting: Setting, initial: TrainedModel) -> Measured:
    teacher = setting.train_mean_teacher(initial)
    return Measured(setting.train_mean_teacher(initial, judged=teacher))


def _lraspp_on_sam(setting: Setting, _: TrainedModel) -> Measured:
    """Without augmentation, so that SAM's encoder sees each image once."""
    return Measured(setting.train_initial(architecture=setting.lraspp,
                                          schedule=replace(setting.schedule, data_aug=0.0)))


def _fully_supervised(setting: Setting, _: TrainedModel) -> Measured:
    return Measured(setting.train_initial(sampling=replace(setting.sampling, num_train_samples=ALL)))


def _nnunet_alone(kind: str) -> Callable[[Setting, TrainedModel], Measured]:
    """nnU-Net's own masks of the test images."""
    def run(setting: Setting, initial: TrainedModel) -> Measured:
        setting.labels[kind].prepare(initial)
        return Measured(initial, kind)
    return run


METHODS: dict[str, Method] = {
    "initial": Method("U-Net", lambda _, initial: Measured(initial)),
    "u_net_sam": Method("U-Net + SAM", _refine_only("sam"), ("sam",)),
    "u_net_medsam": Method("U-Net + MedSAM", _refine_only("medsam"), ("medsam",), optional=True),
    "u_net_random_walk": Method("U-Net + Random Walk", _refine_only("random_walk"), ("random_walk",)),
    "raw": Method("Raw pseudo labels", _final("raw"), ("raw",), final=True),
    "random_walk": Method("Random walk's pseudo labels", _final("random_walk"), ("random_walk",), final=True),
    "sam": Method("SAM's pseudo labels", _final("sam"), ("sam",), final=True),
    "medsam": Method("MedSAM's pseudo labels", _final("medsam"), ("medsam",), final=True, optional=True),
    "recommended": Method("Recommended", _recommended(1), ("recommended",), final=True, optional=True),
    "recommended_twice": Method("Recommended, two rounds", _recommended(2), ("recommended",), final=True,
                                optional=True),
    "mixed": Method("SAM's pseudo labels, mixed", _final("sam", options=MIXED), ("sam",), final=True),
    "sam_finetuned": Method("Fine-tuned SAM's pseudo labels", _final_of_tuned_sam, ("sam",), final=True, optional=True),
    "mean_teacher": Method("Mean teacher", lambda setting, initial: Measured(setting.train_mean_teacher(initial))),
    "reliable_mean_teacher": Method("Reliable mean teacher", _reliable_mean_teacher, ("sam",)),
    "lraspp_on_sam": Method("SAM ViT + LR-ASPP", _lraspp_on_sam, ("sam",)),
    "fully_supervised": Method("Fully supervised", _fully_supervised),
    "nnunet": Method("nnU-Net's pseudo labels", _final("nnunet"), ("nnunet",), final=True, optional=True),
    "nnunet_alone": Method("nnU-Net", _nnunet_alone("nnunet"), ("nnunet",), optional=True),
    "nnunet_bce": Method("nnU-Net BCE", _nnunet_alone("nnunet_bce"), ("nnunet_bce",), optional=True),
}
