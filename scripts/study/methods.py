"""The methods that a study compares, and what is alike for all of them.

To add a method, enter it in `METHODS`; scripts.run_study and scripts.plot_results then know it. Its stages are those of
`Stages`, so that a queue can run them, too.
"""
import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch

from segment_anything.refinement.agreement import AgreementOptions
from segment_anything.refinement.refine import RefinementOptions
from segment_anything.tuned_decoder import TunedDecoder
from unet_training.combine_networks import combine_if_missing
from unet_training.data import check_fills_batch
from unet_training.hyper_params import (
    RECOMMENDED_ENSEMBLE,
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
from unet_training.sam_decoder.training import DecoderTuning, TuningOptions, check_stored
from unet_training.samplers import mix_batches
from unet_training.saved_masks import check_unsure, count_unsure, save_masks
from unet_training.training import InitialTraining, add_initial_arguments
from unet_training.training_on_pseudo_labels import FinalTraining, add_final_arguments
from unet_training.training_stage import TrainingStage, train_if_missing
from unet_training.training_with_mean_teacher import MeanTeacherTraining, Reliable
from utils.cli import select_device
from utils.datasets.annotated import AnnotatedImages
from utils.options import add_options, options_from
from utils.tracking.models import fetch_model

MIXED = FinalOptions(train_from_scratch=False, mixed="half")
TUNING = TuningOptions()
SEED_STEP = 1000  # between the members of an ensemble, so that seeds which follow one another share none


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

    def check(self, finals: Sequence[tuple[PseudoLabels, FinalOptions]], unlabeled: bool = False) -> None:
        """Tells mistakes in what comes late before the hours of training.

        Args:
            finals: the pseudo labels that will be trained on, and how
            unlabeled: whether unlabeled images will be trained on without pseudo labels
        Raises:
            InputError: the number of labeled images, the batch size or --drop_unsure has no meaning, or there are no
                unlabeled images where they are needed.
        """
        labeled = self.data.stems("train", self.num_labeled)
        size, source = self.schedule.batch_size, f"data set {self.data.description.name}"
        stems = self.selection.stems(self.data, len(labeled)) if finals or unlabeled else []
        if unlabeled:
            check_fills_batch(len({*labeled, *stems}), size, source)
        for labels, options in finals:
            share = options.drop_unsure
            check_unsure(labels, share)
            kept = len(stems) - count_unsure(len(stems), share)
            check_fills_batch(kept, size, source,
                              "unlabeled images" + (f" that --drop_unsure {share} leaves" if share else ""))
            if options.mixed:
                mix_batches(options.mixed, len(labeled), kept, size)

    def can_measure_unlabeled(self) -> bool:
        """Whether the ground truth of all images for pseudo labels is known."""
        return all(map(self.data.has_ground_truth, self.selection.stems(self.data, self.num_labeled)))

    def load(self, model_id: str) -> TrainedModel:
        return TrainedModel.load(fetch_model(model_id), self.data, self.device, self.machine.infer_batch_size)

    def initial_training(self, **changes: Any) -> InitialTraining:
        """`changes` are fields of `InitialTraining`."""
        return replace(InitialTraining(self.schedule, self.seed, self.data, self.architecture, self.sampling,
                                       self.machine.infer_batch_size, self.initial), **changes)

    def final_training(self, initial: TrainedModel, labels: PseudoLabels, **changes: Any) -> FinalTraining:
        """On saved pseudo labels; `changes` are fields of `FinalTraining`."""
        return replace(FinalTraining(self.final_schedule, self.seed, initial, labels, self.selection, self.final,
                                     self.loss, self.machine), **changes)

    def mean_teacher_training(self, initial: TrainedModel, reliable: Reliable | None = None) -> MeanTeacherTraining:
        """`reliable` says whose masks enter as labels where SAM agrees with them."""
        options = MeanTeacherOptions()
        if reliable:
            options = MeanTeacherOptions(reliable=RELIABLE, reliable_model_id=reliable.model.id)
        return MeanTeacherTraining(self.final_schedule, self.seed, initial, options, reliable, self.selection,
                                   self.loss, self.machine)


def headline(text: str) -> None:
    print(f"\n== {text} ==", flush=True)


@dataclass(frozen=True)
class Stages:
    """The stages of a setting, each of which is run here unless its result is there already.

    The order of stages is written with these methods alone, so that `scripts.pipeline_steps.Steps`, which runs none,
    can be told of all.
    """

    setting: Setting
    run_here: ClassVar[bool] = True

    def begin(self, title: str) -> None:
        """Says what comes next."""
        headline(title)

    def train(self, training: TrainingStage) -> TrainedModel:
        return self.setting.load(train_if_missing(training, self.setting.device))

    def combine(self, models: Sequence[TrainedModel]) -> TrainedModel:
        return self.setting.load(combine_if_missing([model.id for model in models]))

    def join_ensemble(self, initial: TrainedModel, count: int) -> TrainedModel:
        """The initial network with others of the same training from other seeds, so many in all; one is itself."""
        others = [self.train(self.setting.initial_training(seed=self.setting.seed + SEED_STEP * number))
                  for number in range(1, count)]
        return self.combine([initial, *others]) if others else initial

    def tune(self, tuning: DecoderTuning) -> TunedDecoder:
        return TunedDecoder.fetch(tuning.run_if_missing())

    def prepare(self, labels: PseudoLabels, model: TrainedModel) -> PseudoLabels:
        """Once what has to be trained first was trained."""
        return labels.prepare(model)

    def save_masks(self, labels: PseudoLabels, model: TrainedModel) -> None:
        save_masks(labels, model, self.setting.selection)


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
        run: has its stages done, from the initial network on
        kinds: of `Setting.labels` that it uses
        final: whether it trains on the pseudo labels of `kinds`, whose Dice is then measured, too
        optional: whether its weights or packages are not everybody's, or it isn't among the paper's
        options: of that training; None: the setting's
        unlabeled: whether it trains on unlabeled images without pseudo labels
        check: raises an InputError where it can't be run in a setting, before the hours of training
    """

    title: str
    run: Callable[[Stages, TrainedModel], Measured]
    kinds: tuple[str, ...] = ()
    final: bool = False
    optional: bool = False
    options: FinalOptions | None = None
    unlabeled: bool = False
    check: Callable[[Setting], None] | None = None

    def finals(self, setting: Setting) -> list[tuple[PseudoLabels, FinalOptions]]:
        """The pseudo labels that it trains on, and how."""
        return [(setting.labels[kind], self.options or setting.final) for kind in self.kinds if self.final]


def _refine_only(kind: str) -> Callable[[Stages, TrainedModel], Measured]:
    """The initial network's masks of the test images, refined; no second training."""
    return lambda _, initial: Measured(initial, kind)


def _final(title: str, kind: str, optional: bool = False, options: FinalOptions | None = None) -> Method:
    """The final network on pseudo labels, which are made first."""
    def run(stages: Stages, initial: TrainedModel) -> Measured:
        setting = stages.setting
        labels = setting.labels[kind]
        stages.save_masks(labels, initial)
        return Measured(stages.train(setting.final_training(initial, labels, options=options or setting.final)))
    return Method(title, run, (kind,), final=True, optional=optional, options=options)


def _recommended(title: str, rounds: int, ensemble: int = 1) -> Method:
    """Recommended refinement and training; an ensemble of initial networks labels first, and the final network of a
    round is the initial one of the next."""
    def run(stages: Stages, initial: TrainedModel) -> Measured:
        labels, final = stages.setting.labels["recommended"], stages.join_ensemble(initial, ensemble)
        for _ in range(rounds):
            labeler = final
            stages.save_masks(labels, labeler)
            final = stages.train(stages.setting.final_training(labeler, labels, options=RECOMMENDED_FINAL,
                                                               loss=RECOMMENDED_LOSS))
        return Measured(final, trained_on=labels, labeler=labeler)
    return Method(title, run, ("recommended",), final=True, optional=True, options=RECOMMENDED_FINAL)


def _final_of_tuned_sam(stages: Stages, initial: TrainedModel) -> Measured:
    """SAM's mask decoder is fine-tuned first; pseudo labels and final network as with SAM's own."""
    labels = stages.setting.labels["sam"]
    decoder = stages.tune(DecoderTuning(TUNING, stages.setting.seed, labels.sam, initial))
    tuned = replace(labels, sam=replace(labels.sam, tuned=decoder))
    stages.save_masks(tuned, initial)
    return Measured(stages.train(stages.setting.final_training(initial, tuned)), trained_on=tuned)


def _check_tunable(setting: Setting) -> None:
    check_stored(setting.labels["sam"].sam)


def _mean_teacher(stages: Stages, initial: TrainedModel) -> Measured:
    return Measured(stages.train(stages.setting.mean_teacher_training(initial)))


def _reliable_mean_teacher(stages: Stages, initial: TrainedModel) -> Measured:
    """That mean teacher's masks enter as labels where SAM agrees with them."""
    agreement = Agreement(stages.setting.labels["sam"].sam, AgreementOptions())
    teacher = _mean_teacher(stages, initial).model
    stages.save_masks(agreement, teacher)
    return Measured(stages.train(stages.setting.mean_teacher_training(initial, Reliable(teacher, agreement))))


def _lraspp_on_sam(stages: Stages, _: TrainedModel) -> Measured:
    """Without augmentation, so that SAM's encoder sees each image once."""
    setting = stages.setting
    return Measured(stages.train(setting.initial_training(architecture=setting.lraspp,
                                                          schedule=replace(setting.schedule, data_aug=0.0))))


def _fully_supervised(stages: Stages, _: TrainedModel) -> Measured:
    sampling = replace(stages.setting.sampling, num_train_samples=ALL)
    return Measured(stages.train(stages.setting.initial_training(sampling=sampling)))


def _nnunet_alone(kind: str) -> Callable[[Stages, TrainedModel], Measured]:
    """nnU-Net's own masks of the test images."""
    def run(stages: Stages, initial: TrainedModel) -> Measured:
        stages.prepare(stages.setting.labels[kind], initial)
        return Measured(initial, kind)
    return run


METHODS: dict[str, Method] = {
    "initial": Method("U-Net", lambda _, initial: Measured(initial)),
    "u_net_sam": Method("U-Net + SAM", _refine_only("sam"), ("sam",)),
    "u_net_medsam": Method("U-Net + MedSAM", _refine_only("medsam"), ("medsam",), optional=True),
    "u_net_random_walk": Method("U-Net + Random Walk", _refine_only("random_walk"), ("random_walk",)),
    "raw": _final("Raw pseudo labels", "raw"),
    "random_walk": _final("Random walk's pseudo labels", "random_walk"),
    "sam": _final("SAM's pseudo labels", "sam"),
    "medsam": _final("MedSAM's pseudo labels", "medsam", optional=True),
    "recommended": _recommended("Recommended", 1),
    "recommended_twice": _recommended("Recommended, two rounds", 2),
    "recommended_ensemble": _recommended("Recommended, ensemble, two rounds", 2, RECOMMENDED_ENSEMBLE),
    "mixed": _final("SAM's pseudo labels, mixed", "sam", options=MIXED),
    "sam_finetuned": Method("Fine-tuned SAM's pseudo labels", _final_of_tuned_sam, ("sam",), final=True, optional=True,
                            check=_check_tunable),
    "mean_teacher": Method("Mean teacher", _mean_teacher, unlabeled=True),
    "reliable_mean_teacher": Method("Reliable mean teacher", _reliable_mean_teacher, ("sam",), unlabeled=True),
    "lraspp_on_sam": Method("SAM ViT + LR-ASPP", _lraspp_on_sam, ("sam",)),
    "fully_supervised": Method("Fully supervised", _fully_supervised),
    "nnunet": _final("nnU-Net's pseudo labels", "nnunet", optional=True),
    "nnunet_alone": Method("nnU-Net", _nnunet_alone("nnunet"), ("nnunet",), optional=True),
    "nnunet_bce": Method("nnU-Net BCE", _nnunet_alone("nnunet_bce"), ("nnunet_bce",), optional=True),
}
